"""Real models behind real servers, all of which die in mid-run: nothing lost, nothing asked twice, all counted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image
from tests.chat_server import ChatServer
from tests.harness import Commands, faults_in
from tests.llm_server import LlmServer
from tests.tiny_vlm import write_tiny_vlm
from tests.vlm_server import VlmServer

from tokenmill.manifests.archive import ArchiveWriter
from tokenmill.manifests.snapshots import Snapshot
from tokenmill.pipelines.chain import STAGES, Chain, ChainOptions
from tokenmill.recipe import check_recipe

NUM_SAMPLES, NUM_SMALL = 500, 50
CONCURRENCY = 16
_COLOURS = ["red", "blue", "white", "green", "grey", "black", "brown", "pink"]
_THINGS = ["house", "bridge", "dog", "train", "market", "garden", "horse", "lamp"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five hundred pictures in two shards, selected and not captioned; fifty have sides of 64 pixels, the rest 80."""
    folder = tmp_path_factory.mktemp("must-hold")
    (folder / "raw").mkdir()
    for shard in range(2):
        with ArchiveWriter(folder / "raw" / f"{shard:05d}.tar") as writer:
            for number in range(shard * NUM_SAMPLES // 2, (shard + 1) * NUM_SAMPLES // 2):
                side = 64 if number % (NUM_SAMPLES // NUM_SMALL) == 0 else 80
                writer.add(f"{number:05d}", {"jpg": _picture(number, side), "txt": _caption(number).encode()})
    chain = _chain(folder, {}, work=frozenset(STAGES[: STAGES.index("caption")]))
    assert chain.select["pictures"].counts.kept == NUM_SAMPLES
    return folder


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands(tokenizer=False) as commands:
        yield commands


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def _picture(number: int, side: int) -> bytes:
    """Return a JPEG of 36 random patches of colour."""
    patches = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(patches).resize((side + 16, side)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _caption(number: int) -> str:
    return f"{_COLOURS[number % 8]} {_THINGS[number // 8 % 8]} {number}"


def _recipe(folder: Path, column: dict[str, Any], min_side_px: int = 64) -> dict[str, Any]:
    checks = {"cut_off": False, "echoes": False, "min_words": 0}  # what these models say is not the question
    asked = {"engine": "openai", "model": "small", "concurrency": CONCURRENCY, "ahead": 0, "checks": checks}
    columns = {"columns": {"short": asked | column}} if column else {}
    return {
        "root": str(folder / "root"),
        "execution": {"executor": "inline", "workers": 1, "decode_threads": 1},
        "sources": {"pictures": {"kind": "webdataset", "url": str(folder / "raw")}},
        "filter": {"image": {"scorers": {"resolution": {}}, "rules": {"size": f"min_side_px >= {min_side_px}"}}},
        "caption": {"image": columns},
    }


def _chain(folder: Path, column: dict[str, Any], min_side_px: int = 64, work: frozenset[str] | None = None) -> Chain:
    recipe = check_recipe(_recipe(folder, column, min_side_px), "must-hold")
    return Chain(recipe=recipe, options=ChainOptions(work=frozenset(STAGES) if work is None else work, quiet=True))


def _answers(snapshot: Snapshot) -> pl.DataFrame:
    return pl.concat([snapshot.folder.read_rows(commit) for commit in snapshot.commits])


def _captioned(folder: Path, column: dict[str, Any], min_side_px: int = 64) -> Snapshot:
    return _chain(folder, column, min_side_px).caption["pictures", "short"]


def _run_with_kills(
    commands: Commands, folder: Path, column: dict[str, Any], server: ChatServer, restart: Callable[[], None]
) -> None:
    """Caption everything, while the server dies twice and the stage once."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(_recipe(folder, column)))
    places = sorted(random.sample(range(40, NUM_SAMPLES - 60), 3))  # requests, when somebody dies
    victim = random.randrange(3)
    print(f"kills at {places} requests, the stage's is number {victim}")  # shown when the test fails

    def killer(pid: int) -> None:
        for number, place in enumerate(places):
            server.wait_for(place, limit_s=300)
            if number == victim:
                os.kill(pid, signal.SIGKILL)
            else:
                restart()

    threads: list[threading.Thread] = []

    def started(pid: int) -> None:
        threads.append(threading.Thread(target=killer, args=(pid,)))
        threads[0].start()

    assert commands.run("run", path, "--until", "caption", started=started).was_killed
    commands.run("run", path, "--until", "caption").check()
    threads[0].join(timeout=60)
    assert not threads[0].is_alive()


def _assert_each_answered_once(folder: Path, column: dict[str, Any], server: ChatServer) -> pl.DataFrame:
    chain = _chain(folder, column, work=frozenset())
    answers = _answers(chain.caption["pictures", "short"])
    assert sorted(answers["key"]) == [f"{number:05d}" for number in range(NUM_SAMPLES)]
    assert answers["texts"].null_count() == 0
    asked = server.asked()
    assert len(asked) == NUM_SAMPLES
    assert NUM_SAMPLES <= asked.total() <= NUM_SAMPLES + 3 * CONCURRENCY
    assert faults_in(chain.store) == []
    return answers


@pytest.mark.slow
def test_captions_of_a_language_model_servers_and_stage_killed_each_sample_asked_once(commands: Commands, folder: Path):
    column = {"pictures": False, "system": "Caption.", "prompt": "{caption}", "max_tokens": 5}
    with LlmServer() as model, ChatServer(upstream=model.url) as server:

        def restart() -> None:
            server.kill()  # first, so that what it counts was asked of a living model
            model.kill()
            model.restart()
            server.restart()

        column["base_urls"] = [server.url]
        _run_with_kills(commands, folder, column, server, restart)
        answers = _assert_each_answered_once(folder, column, server)
    assert answers["output_tokens"].min() > 0
    assert answers["texts"].list.first().n_unique() > NUM_SAMPLES // 2


@pytest.mark.slow
def test_captions_of_a_vision_language_model_server_and_stage_killed_each_picture_asked_once(
    commands: Commands, folder: Path, tmp_path: Path
):
    with VlmServer(write_tiny_vlm(tmp_path / "model")) as server:

        def restart() -> None:
            server.kill()
            server.restart()

        column = {"prompt": "Describe picture {key}.", "max_tokens": 16, "base_urls": [server.url]}
        _run_with_kills(commands, folder, column, server, restart)
        answers = _assert_each_answered_once(folder, column, server)
        assert len({one["pictures"][0] for one in server.received()}) == NUM_SAMPLES
    assert answers["texts"].list.first().n_unique() > NUM_SAMPLES // 4


def test_captions_one_request_in_twenty_fails_nothing_lost_every_reason_counted(folder: Path):
    faults = {"timeout": 0.015, "http_503": 0.02, "reset": 0.015}
    with ChatServer(faults=faults, seed=3) as server:
        column = {"prompt": "What is {caption}?", "base_urls": [server.url], "timeout_s": 1, "concurrency": 64}
        snapshot = _captioned(folder, column)
        answers = _answers(snapshot)
        met = Counter(one["fault"] for one in server.received())
    assert snapshot.counts.kept == NUM_SAMPLES
    assert sorted(answers["key"]) == [f"{number:05d}" for number in range(NUM_SAMPLES)]
    assert met.pop("ok") == NUM_SAMPLES
    assert met.keys() == faults.keys()
    retried: Counter[str] = Counter()
    for text in answers["retried"]:
        retried.update(json.loads(text))
    assert retried == met
    counted = {name.removeprefix("retried."): number for name, number in snapshot.totals.items() if "retried." in name}
    assert counted == met, "the records' own sums, which status tells"
    assert snapshot.totals["requests"] == NUM_SAMPLES + met.total()
    assert answers["requests"].sum() == NUM_SAMPLES + met.total()


def test_captions_selection_keeps_more_asks_for_those_alone(folder: Path, fast: ChatServer):
    column = {"prompt": "What is {caption}?", "base_urls": [fast.url]}
    assert _captioned(folder, column, min_side_px=80).counts.kept == NUM_SAMPLES - NUM_SMALL
    before = fast.asked()
    _captioned(folder, column)
    new = fast.asked() - before
    assert before.total() == NUM_SAMPLES - NUM_SMALL
    assert new == {f"What is {_caption(number)}?": 1 for number in range(0, NUM_SAMPLES, NUM_SAMPLES // NUM_SMALL)}
    chain = _chain(folder, column, work=frozenset(STAGES) - {"caption"})
    assert chain.choose["pictures"].counts.kept == NUM_SAMPLES


def test_captions_prompt_changed_asks_for_all_and_leaves_the_old_column(folder: Path, fast: ChatServer):
    old = {"prompt": "What is {caption}?", "base_urls": [fast.url]}
    _captioned(folder, old)
    files = {path: path.read_bytes() for path in _files(folder)}
    _captioned(folder, old | {"prompt": "Describe {caption}."})
    assert fast.asked().total() == 2 * NUM_SAMPLES
    assert {path: path.read_bytes() for path in files} == files
    _captioned(folder, old)
    assert fast.asked().total() == 2 * NUM_SAMPLES


@pytest.fixture
def fast() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / "root" / "caption").rglob("*") if path.is_file() and "logs" not in path.parts]
