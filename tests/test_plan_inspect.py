"""`tokenmill inspect PLAN`: its report, a pack as text and pictures, from a step back to keys, URLs and licences."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tokenmill.cli import main
from tokenmill.demo.scenes import captions, scene
from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError
from tokenmill.inspection import inspect_path, open_decoders
from tokenmill.manifests.archive import iterate_members
from tokenmill.manifests.identity import digest_of
from tokenmill.manifests.inspect_sample import Decoders
from tokenmill.manifests.plan_sources import sources_of_packs
from tokenmill.manifests.plans import Plan, open_plan
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pack_inspection import describe_pack, render_pack
from tokenmill.pipelines.plan import write_plan
from tokenmill.plan_inspection import PlanView, inspect_plan
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary

VOCABULARY = byte_vocabulary(64)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    store = open_store(str(tmp_path_factory.mktemp("made") / "root"))
    snapshots = [
        write_token_source(store, "pictures", VOCABULARY, Amounts(images=40, clips=6)),
        write_token_source(store, "words", VOCABULARY, Amounts(texts=40, text_words=60)),
    ]
    return write_plan(store, snapshots, PlanSettings(context=300, split_long_clips=True))


def place(plan: Plan) -> str:
    return f"{plan.folder.store.url}/{plan.folder.path}"


def _noted(self: Store, real: Any, read: set[str], path: str, *arguments: Any) -> Any:
    read.add(path)
    return real(self, path, *arguments)


def looked(plan: Plan, tmp_path: Path, **view: Any) -> tuple[dict[str, Any], str]:
    return inspect_plan(place(plan), PlanView(**view), {}, tmp_path)


def shown(plan: Plan, pack: int) -> tuple[dict[str, Any], str]:
    """Describe a pack without a vision tokenizer: the made-up sources have none."""
    found = describe_pack(plan, pack, Decoders(), None)
    return found, render_pack(found)


def finished_plan(finished: Any) -> Plan:
    (folder,) = finished.root.glob("plans/*/*")
    return open_plan(open_store(str(finished.root)), str(folder.relative_to(finished.root)))


def test_inspect_of_a_plan_tells_its_report_and_reads_only_its_small_tables(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    for name in ("read_bytes", "open", "files", "names", "read_range", "read_ranges"):
        real = getattr(Store, name)
        monkeypatch.setattr(Store, name, partialmethod(_noted, real, read))
    found, text = inspect_path(place(plan))

    small = ("config.json", "plan.json", "windows.parquet", "shards.parquet")
    assert read <= {f"{plan.folder.path}/{name}" for name in small}
    assert found["counts"] == plan.description["counts"]
    assert found["windows"]["windows"] == len(plan.windows)
    assert found["shards"] == {"pictures": 2, "words": 2}
    assert f"{plan.num_packs:,} packs, fill {plan.description['fill']:.4f}" in text
    for name, told in plan.description["templates"].items():
        (line,) = [line.split() for line in text.splitlines() if line.startswith(f"{name} ")]
        assert f"{told['tokens']:,}" in line
    json.dumps(found)


def test_inspect_of_a_plan_with_drops_tells_each_reason(finished: Any) -> None:
    plan = finished_plan(finished)
    _, text = inspect_path(place(plan))
    assert f"dropped held_out: {plan.description['counts']['dropped']['held_out']}" in text


def test_inspect_of_a_pack_shows_its_documents_in_order_with_their_pieces(plan: Plan) -> None:
    texts: dict[tuple[str, int], dict[int, str]] = {}
    for pack in range(plan.num_packs):
        found, text = shown(plan, pack)
        assert [told["length"] for told in found["documents"]] == [d.length for d in plan.documents(pack)]
        for told in found["documents"]:
            assert told["key"] in text and "fault" not in told
            said = "".join(part.get("text", part.get("marker", "[]")) for part in told["parts"])
            assert said.startswith("<BOS>") == (told["start"] == 0)
            assert said.endswith("<EOS>") == (told["start"] + told["length"] == told["of"])
            assert bool(told["cut"]) == (told["length"] < told["of"])
            if told["template"] == "language":
                texts.setdefault((told["shard"], told["sample"]), {})[told["start"]] = said
    cut = [pieces for pieces in texts.values() if len(pieces) > 1]
    assert cut
    for pieces in texts.values():
        whole = "".join(pieces[start] for start in sorted(pieces))
        assert whole.startswith("<BOS>") and whole.endswith(".<EOS>") and "<" not in whole[5:-5]


def test_inspect_of_a_pack_shows_grids_and_stretches_of_clips(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    snapshot = write_token_source(store, "clips", VOCABULARY, Amounts(clips=4))
    plan = write_plan(store, [snapshot], PlanSettings(context=150, split_long_clips=True))
    for pack in range(plan.num_packs):
        found, text = shown(plan, pack)
        (told,) = found["documents"]
        (vision,) = [part["vision"] for part in told["parts"] if "vision" in part]
        first, last = told["frames"]
        assert vision == [last - first, 8, 8]
        assert f"latent frames {first} to {last}" in text and f"[{last - first}×8×8 codes]" in text


def test_inspect_of_a_pack_writes_its_pictures(finished: Any, tmp_path: Path) -> None:
    plan = finished_plan(finished)
    pictures = [(p, s, d) for p in range(plan.num_packs) for s, d in enumerate(plan.documents(p))
                if d.source == "scenes" and d.template == "generation"]  # fmt: skip
    pack, slot, _ = pictures[0]
    found, text = looked(plan, tmp_path, pack=pack)
    told = found["documents"][slot]
    (vision,) = [part for part in told["parts"] if "vision" in part]
    caption = "".join(part.get("text", "") for part in told["parts"])
    assert caption in captions(scene(int(told["key"][:5]) * 6 + int(told["key"][5:])))
    assert caption in text
    _, height, width = vision["vision"]
    picture = np.asarray(Image.open(vision["picture"]))
    assert picture.shape == (8 * height, 8 * width, 3) and picture.std() > 5


def test_inspect_of_a_pack_with_a_vanished_shard_tells_the_fault(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    snapshot = write_token_source(store, "words", VOCABULARY, Amounts(texts=9, shards=1))
    plan = write_plan(store, [snapshot], PlanSettings(context=300))
    next(Path(store.url).glob("tokenize/words/*/*.tar")).unlink()
    found, text = shown(plan, 0)
    assert all("not there" in told["fault"] for told in found["documents"])
    assert "cannot be read" in text
    sources, text = looked(plan, tmp_path, step=0, global_packs=1, sources=True)
    assert sources["faults"] == len(found["documents"])
    assert all(told["key"].startswith("words-text-") for told in sources["documents"]), "the index is still there"


def test_inspect_of_sources_with_another_index_than_planned_with_tells_the_fault(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    snapshot = write_token_source(store, "words", VOCABULARY, Amounts(texts=9, shards=1))
    plan = write_plan(store, [snapshot], PlanSettings(context=300))
    path = Path(store.url) / plan.shards["index"][0]
    pl.read_parquet(path).reverse().write_parquet(path)
    found = sources_of_packs(plan, range(plan.num_packs))
    assert found["fault"].str.contains("sha256 differs").all() and found["key"].null_count() == len(found)


def test_inspect_of_a_pack_whose_tokenizer_is_out_of_reach_shows_codes_at_once(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    decoders = open_decoders({**plan.description, "vision": {"name": "nobody/has-this"}})
    (pack, *_) = (n for n in range(plan.num_packs) if any(d.source == "pictures" for d in plan.documents(n)))
    started = time.perf_counter()
    found = describe_pack(plan, pack, decoders, tmp_path)
    assert time.perf_counter() - started < 10, "the hub's own retries take 25 s"
    assert [part for told in found["documents"] for part in told["parts"] if "vision" in part]
    assert "the hub does not answer, and the cache has none" in caplog.text and not list(tmp_path.iterdir())


def test_inspect_of_a_step_names_the_packs_it_takes_in_every_epoch(plan: Plan, tmp_path: Path) -> None:
    size = 4
    per_epoch = -(-plan.num_packs // size)
    seen = []
    for step in range(per_epoch):
        found, _ = looked(plan, tmp_path, step=step, global_packs=size)
        seen += [row["pack"] for row in found["rows"]]
        assert found["tokens"] == sum(plan.cost(row["pack"]).tokens for row in found["rows"])
    assert seen == list(range(plan.num_packs))
    again, text = looked(plan, tmp_path, step=per_epoch + 1, global_packs=size)
    assert (again["epoch"], again["packs"]) == (1, [size, 2 * size])
    assert f"step {per_epoch + 1} (epoch 1)" in text


def test_inspect_of_a_step_goes_back_to_keys_urls_and_licences(finished: Any, tmp_path: Path) -> None:
    plan = finished_plan(finished)
    found = sources_of_packs(plan, range(plan.num_packs))
    assert found["fault"].null_count() == len(found)
    assert set(found.filter(pl.col("source") == "scenes")["licence"]) == {"Apache-2.0"}
    with_urls = 0
    for (shard,), rows in found.group_by("shard"):
        archive = Path(plan.folder.store.url) / str(shard)
        with archive.open("rb") as file:
            told = [json.loads(data) for member, data in iterate_members(file) if member.name.endswith(".json")]
        by_key = {one["key"]: one for one in told}
        for key, urls in rows.select("key", "urls").rows():
            url = by_key[key]["metadata"].get("url")
            with_urls += bool(url)
            assert urls == ([url] if url else [])
    assert with_urls
    steps = -(-plan.num_packs // 4)
    by_step = [looked(plan, tmp_path, step=step, global_packs=4, sources=True)[0]["documents"] for step in range(steps)]
    assert [row for rows in by_step for row in rows] == found.to_dicts()


def test_inspect_of_a_step_takes_its_size_from_the_runs_on_the_plan(plan: Plan, capsys: Any) -> None:
    command = ["inspect", place(plan), "--step", "1", "--json"]
    assert main(command) == 2
    assert "give --global-packs G" in capsys.readouterr().err
    folder = Path(plan.folder.store.url) / "checkpoints"
    state = {"plan_id": plan.plan_id, "phase": plan.phase, "epoch": 0, "next_pack": 3, "global_packs": 3}
    for run, size in (("one", 3), ("two", 5)):
        record = folder / run / "step-00000001" / "checkpoint.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"loader": state | {"global_packs": size}}))
        code = main(command)
        told = capsys.readouterr()
        if run == "one":
            assert code == 0 and json.loads(told.out)["packs"] == [3, 6]
        else:
            assert code == 2 and "have [3, 5] packs a step" in told.err


def test_inspect_of_a_step_of_a_plan_that_continues_another_counts_over_the_whole_run(
    plan: Plan, tmp_path: Path
) -> None:
    shutil.copytree(plan.folder.store.url, tmp_path / "root", ignore=shutil.ignore_patterns("checkpoints"))
    path = tmp_path / "root" / plan.folder.path
    before = {"plan": "ab" * 32, "step": 100, "global_packs": 3, "folder": "plans/pretrain/before"}
    told = {**plan.description, "continues": before}
    (path / "plan.json").write_text(json.dumps(told | {"digest": digest_of(told)}))
    found, _ = inspect_plan(str(path), PlanView(step=101), {})
    assert (found["step"], found["packs"]) == (101, [3, 6])
    with pytest.raises(RecipeError, match="takes over at step 100; look into plans/pretrain/before"):
        inspect_plan(str(path), PlanView(step=99), {})


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--pack", "100000"], 1, "no pack 100,000"),
        (["--pack", "-1"], 1, "no pack -1"),
        (["--pack", "1", "--step", "1"], 2, "one at a time"),
        (["--sources"], 2, "goes with --step S or --pack N"),
        (["--step", "-1", "--global-packs", "2"], 2, "steps count from 0"),
        (["--step", "1", "--global-packs", "0"], 2, "a number from 1 on"),
        (["--step", "1", "--key", "a"], 2, "--key: goes with an archive"),
    ],
)
def test_inspect_of_a_plan_with_wrong_options_says_which(
    plan: Plan, options: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", place(plan), *options]) == code
    assert told in capsys.readouterr().err


def test_inspect_of_a_plan_named_by_its_description_is_of_the_folder(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place(plan))
    for path in ("plan.json", f"{place(plan)}/plan.json", "."):
        assert main(["inspect", path, "--pack", "0", "--sources", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["plan"] == plan.plan_id
        assert main(["inspect", path, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == "plan"


def test_inspect_of_a_pack_where_no_plan_lies_says_so(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path), "--pack", "0"]) == 1
    assert "no finished plan there" in capsys.readouterr().err


def test_inspect_of_sources_as_text_is_a_table(plan: Plan, tmp_path: Path) -> None:
    found, text = looked(plan, tmp_path, pack=0, sources=True)
    head, *rows = text.splitlines()[2:]
    assert head.split() == ["pack", "slot", "source", "key", "template", "length", "urls", "licence", "shard", "sample"]
    assert Counter(row.split()[3] for row in rows) == Counter(told["key"] for told in found["documents"])
