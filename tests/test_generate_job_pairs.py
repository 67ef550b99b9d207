"""From a table of prompts to what DPO learns from: the documents of a plan are the ids that were drawn, bit by bit."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.drawing_jobs import checked, job_recipe, write_export, write_rows
from tests.test_pipelines_generation import V
from tests.test_preference_votes import planned, voted

from tokenmill.cli import main
from tokenmill.errors import RecipeError, RunError
from tokenmill.manifests.storage import open_store
from tokenmill.pipelines.drawing_jobs import READ_ONLY, draw_jobs
from tokenmill.pipelines.drawn import DrawnSample, drawn_samples
from tokenmill.pipelines.pair_archives import pairs_of_votes
from tokenmill.recipe import Recipe
from tokenmill.tokenize.templates import PREFERENCE
from tokenmill.train.loader import PlanLoader

PROMPTS = ("a red box", "a blue ball", "a red box", "")
SMALL = {"height": 16, "width": 24, "samples": 3, "unit_rows": 2}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe whose job has drawn three samples of each of three prompts, two of them equal, in two units."""
    folder = tmp_path_factory.mktemp("pairs")
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": text, "key": f"p{n}"} for n, text in enumerate(PROMPTS)])
    write_export(folder / "root", folder / "model")
    recipe = checked(folder / "root", prompts, SMALL)
    draw_jobs(recipe)
    return recipe


def samples_of(recipe: Recipe) -> list[DrawnSample]:
    return list(drawn_samples(draw_jobs(recipe, options=READ_ONLY)["boxes"]))


def votes_of(samples: list[DrawnSample], numbers: dict[int, float]) -> list[dict[str, Any]]:
    return [{"file": f"some/folder/{samples[index].file}", "votes": number} for index, number in numbers.items()]


def test_pairs_of_a_job_are_the_drawn_ids_in_every_document_of_the_plan(recipe, tmp_path):
    samples = samples_of(recipe)
    best_and_worst = [(1, 0), (3, 5), (7, 8)]
    given = {0: 1.0, 1: 4.0, 2: 2.0, 3: 9.0, 4: 8.0, 5: -1.0, 7: 3.0, 8: 0.5}
    votes = voted(tmp_path, votes_of(samples, given))
    made = pairs_of_votes(recipe, votes, job="boxes")
    assert (made["pairs"], made["left_out"]) == (3, {})
    assert pairs_of_votes(recipe, votes, job="boxes") == made

    snapshot, plan = planned(open_store(str(tmp_path / "root")), made["folder"])
    assert snapshot.counts.kept == 3
    found = []
    for step in range(plan.num_packs):
        assert {row.template for row in plan.documents(step)} == {PREFERENCE}
        (pack,) = PlanLoader(plan, V, global_packs=1).step(step).micro_batches
        documents = [pack.input_ids[start:end] for start, end in pairwise(pack.cu_seqlens.tolist())]
        documents = documents[: len(plan.documents(step))]  # behind them is padding
        found += [document.tolist() for document in documents]
    halves = [tuple(map(tuple, found[place : place + 2])) for place in range(0, len(found), 2)]
    wanted = [tuple(tuple(samples[index].ids.tolist()) for index in pair) for pair in best_and_worst]
    assert sorted(halves) == sorted(wanted)


def test_votes_of_a_job_stay_within_its_rows_and_of_its_files(recipe, tmp_path):
    samples = samples_of(recipe)
    tied = voted(tmp_path, votes_of(samples, {0: 1.0, 6: 2.0, 3: 1.0, 4: 1.0}))  # 0 and 6 are of equal prompts
    with pytest.raises(RunError, match="no pair is left: tie 1, unvoted 2"):
        pairs_of_votes(recipe, tied, job="boxes")
    with pytest.raises(RecipeError, match=r"000009-000\.png is none of the 9 pictures"):
        pairs_of_votes(recipe, voted(tmp_path, [{"file": "000009-000.png", "votes": 1}]), job="boxes")
    with pytest.raises(RecipeError, match="no job 'balls'; allowed: boxes"):
        pairs_of_votes(recipe, tied, job="balls")


def test_pairs_command_takes_a_job_and_one_that_is_not_complete_makes_none(recipe, tmp_path, capsys):
    prompts = recipe.generate.jobs["boxes"].prompts
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(job_recipe(Path(recipe.root), Path(prompts), SMALL)))
    votes = voted(tmp_path, votes_of(samples_of(recipe), {0: 1.0, 1: 2.0}))
    command = ["pairs", str(path), "--votes", votes, "--job", "boxes", "--to", str(tmp_path / "to"), "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["pairs"], told["left_out"]) == (1, {"unvoted": 2})
    assert main([*command, "generate.jobs.boxes.top_k=5"]) == 1
    assert "2 of 2 units are missing" in capsys.readouterr().err
    assert main(["pairs", str(path), "--table", votes, "--job", "boxes"]) == 2
