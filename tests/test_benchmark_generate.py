"""The benchmark of drawing: its figures come from real runs of both ways."""

from __future__ import annotations

import json

import pytest
from benchmarks import generate


@pytest.mark.slow
def test_benchmark_of_drawing_gives_rates_and_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    generate.main(["--side", "1", "--batch", "2", "--rounds", "1", "--no-warm-up", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["vocabulary"], found["codes"], found["grid"]) == (184_622, 32_768, [1, 1])
    assert (
        found["ratio"]["guided"] == found["ids_per_s"]["tokenmill, guided"] / found["ids_per_s"]["transformers, guided"]
    )
    assert set(found["ids_per_cpu_s"]) == set(found["of_rounds"])
    assert all(rate > 0 for rate in [*found["ids_per_s"].values(), *found["step_cpu_ms"].values()])
