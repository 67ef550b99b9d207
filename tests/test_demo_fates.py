"""Every file the demo spoils on purpose ends as a failed or dropped row, through the demo's own recipe."""

from __future__ import annotations

from pathlib import Path

from tokenmill.commands import make_chain
from tokenmill.demo.assemble import assemble
from tokenmill.demo.run import demo_recipe, spoiled_fates


def test_spoiled_files_of_the_demo_end_as_they_must(tmp_path: Path) -> None:
    data = assemble(tmp_path / "data", num_scenes=40, progress=lambda line: None)
    # Which scene is re-encoded follows from their number; with these forty its hash moves by more than the demo's.
    overrides = ["execution.executor=inline", "filter.image.duplicates.max_distance=8"]
    chain = make_chain(demo_recipe(tmp_path, overrides), quiet=True)
    fates = spoiled_fates(data, chain)  # raises where one ends otherwise
    assert len(fates) == 19
    reasons = {fate["fate"].split(" (")[0] for fate in fates}
    assert {"dropped: exact_duplicate", "dropped: monochrome", "dropped: text"} <= reasons
    assert {"failed at score: too_many_pixels", "failed at ingest: bad_encoding"} <= reasons
    assert {"failed at split: truncated", "failed at split: not_a_video"} <= reasons
