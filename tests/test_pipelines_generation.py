"""Generating and evaluating with an exported model: once for a model and its settings, from held-out samples only."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.demo.tokens import Amounts, write_token_source
from tokenmill.errors import RecipeError, RunError
from tokenmill.generate.sample import generate_vision
from tokenmill.manifests.identity import sha256_hex
from tokenmill.manifests.storage import Store, open_store
from tokenmill.pipelines.evaluation import plan_of
from tokenmill.pipelines.exported import Exported, find_export
from tokenmill.pipelines.generation import evaluate_model, generate_pictures, generated_name
from tokenmill.pipelines.held_out import draw_documents, shares
from tokenmill.pipelines.plan import write_plan
from tokenmill.recipe import GenerateSettings, Recipe, check_recipe
from tokenmill.settings_train import PlanSettings
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(2048)  # as many codes as the shipped vision tokenizer has
PLAN = {"phase": "first", "context": 256, "held_out": 0.3, "split_long_clips": True, "mix": {"texts": 0.5, "clips": 2}}
PROMPTS = ["shape 3 at 1,1 on 5", "<b>ä</b>"]


def tiny_model(seed: int) -> Emu3ForCausalLM:
    torch.manual_seed(seed)
    config = Emu3TextConfig(
        vocab_size=V.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        pad_token_id=V.pad,
        bos_token_id=V.bos,
        eos_token_id=V.eos,
    )
    return Emu3ForCausalLM(config).eval()


def export(store: Store, scratch: Path, plan: str, *, seed: int = 0, vision: Any = None) -> None:
    """Put a model where a finished training run puts it."""
    tiny_model(seed).save_pretrained(scratch)
    for path in scratch.iterdir():
        store.put(f"checkpoints/main/export/{path.name}", path.read_bytes())
    about = {"vocabulary": V.spec, "vision": vision or {"name": "scenes"}, "plan": plan, "step": 7}
    store.put("checkpoints/main/export/tokenmill.json", json.dumps(about).encode())


@dataclass(frozen=True)
class Trained:
    root: str
    store: Store

    def recipe(self, **generate: Any) -> Recipe:
        settings = {"prompts": PROMPTS, "height": 32, "width": 48, "evaluate_documents": 40, **generate}
        value = {"root": self.root, "sources": {"none": {"kind": "images", "url": "nowhere"}},
                 "train": {"phase": "first"}, "generate": settings}  # fmt: skip
        return check_recipe(value, "test")

    def bytes(self, folder: str) -> dict[str, bytes]:
        return {entry.path: self.store.read_bytes(entry.path) for entry in self.store.files(folder)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A root with a plan over three made-up sources, and an exported model of random weights."""
    root = str(tmp_path_factory.mktemp("trained"))
    store = open_store(root)
    sources = [
        write_token_source(store, "pictures", V, Amounts(images=60, side=6)),
        write_token_source(store, "clips", V, Amounts(clips=20, side=6, latent_frames=8)),
        write_token_source(store, "texts", V, Amounts(texts=40)),
    ]
    plan = write_plan(store, sources, PlanSettings(**PLAN))
    export(store, tmp_path_factory.mktemp("model"), plan.plan_id)
    return Trained(root, store)


def test_generate_writes_a_png_for_each_prompt_and_says_how_it_came(trained):
    row = generate_pictures(trained.recipe(per_prompt=2))
    described = json.loads(trained.store.read_bytes(f"{row['generated']}/generated.json"))
    assert [picture["prompt"] for picture in described["pictures"]] == [p for p in PROMPTS for _ in range(2)]
    assert [picture["seed"] for picture in described["pictures"]] == [0, 1, 2, 3]
    for picture in described["pictures"]:
        data = trained.store.read_bytes(f"{row['generated']}/{picture['file']}")
        image = Image.open(io.BytesIO(data))
        assert image.size == (48, 32)
        assert picture["grid"] == [4, 6]
        assert image.text["prompt"] == picture["prompt"]


def test_generate_writes_an_mp4_for_each_prompt_of_a_clip_and_leaves_the_pictures_as_they_are(trained):
    clips = {"prompts": ["a square moves"], "height": 16, "width": 32, "fps": 8, "seconds": 1.1}
    row = generate_pictures(trained.recipe(clips=clips))
    assert (row["pictures"], row["clips"]) == (2, 1)
    *pictures, clip = json.loads(trained.store.read_bytes(f"{row['generated']}/generated.json"))["pictures"]
    alone = generate_pictures(trained.recipe())
    assert pictures == json.loads(trained.store.read_bytes(f"{alone['generated']}/generated.json"))["pictures"]
    assert (clip["prompt"], clip["seed"], clip["grid"]) == ("a square moves", 2, [2, 4])
    with av.open(io.BytesIO(trained.store.read_bytes(f"{row['generated']}/{clip['file']}"))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.pix_fmt, stream.width, stream.height) == ("yuv420p", 32, 16)
        times = [frame.time for frame in container.decode(stream)]
    assert len(times) == clip["frames"] == 8  # whole latent frames
    assert times[-1] == pytest.approx(7 / 8)


def test_generate_again_changes_nothing_and_loads_no_torch(trained):
    generate_pictures(trained.recipe())
    before = trained.bytes("generated")
    code = (
        "import sys\nfrom tokenmill.pipelines.generation import generate_pictures\n"
        "from tokenmill.recipe import Recipe\n"
        "print(generate_pictures(Recipe.model_validate_json(sys.argv[1])), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, trained.recipe().model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    assert trained.bytes("generated") == before


def test_generate_killed_before_its_description_then_resumed_gives_the_same_bytes(trained):
    recipe = trained.recipe(seed=5)
    folder = generate_pictures(recipe)["generated"]
    before = trained.bytes(folder)
    trained.store.delete(f"{folder}/generated.json")
    generate_pictures(recipe)
    assert trained.bytes(folder) == before


def test_generate_with_other_settings_or_another_model_is_another_folder(trained, tmp_path):
    first = generate_pictures(trained.recipe(top_k=64))["generated"]
    second = generate_pictures(trained.recipe(top_k=65))["generated"]
    other = open_store(str(tmp_path / "root"))
    export(other, tmp_path / "model", "", seed=1)
    recipe = trained.recipe(top_k=64).model_copy(update={"root": str(tmp_path / "root")})
    assert len({first, second, generate_pictures(recipe)["generated"]}) == 3


def test_generate_draws_every_size_away_from_the_negative_prompt_within_the_nucleus(trained):
    sizes = ["16x32", "24x16"]
    how = {"top_p": 0.9, "negative": "grey", "seed": 4}
    row = generate_pictures(trained.recipe(sizes=sizes, **how))
    described = json.loads(trained.store.read_bytes(f"{row['generated']}/generated.json"))
    told = [(one["prompt"], one["grid"], one["seed"]) for one in described["pictures"]]
    assert told == [(PROMPTS[0], [2, 4], 4), (PROMPTS[1], [2, 4], 5), (PROMPTS[0], [3, 2], 6), (PROMPTS[1], [3, 2], 7)]
    by_hand = generate_vision(tiny_model(0), V, PROMPTS, 2, 4, **how)
    assert [sha256_hex(ids.astype("<i4").tobytes()) for ids in by_hand] == [
        one["ids_sha256"] for one in described["pictures"][:2]
    ]
    with pytest.raises(RecipeError, match=r"generate\.sizes"):
        trained.recipe(sizes=["16"])


def test_settings_that_came_later_leave_the_names_of_what_was_drawn_before():
    exported = Exported(open_store("memory://names"), "checkpoints/main/export", "main")
    exported.__dict__["fingerprint"] = "f" * 64
    before = {"prompts": ["a"], "height": 32, "width": 32}
    assert generated_name(exported, GenerateSettings(**before)) == "generated/main/375716c77595473c/generated.json"


def test_generate_on_a_remote_root_draws_the_same(trained, tmp_path):
    remote = open_store("memory://generation-test/root")
    for entry in trained.store.files("checkpoints"):
        remote.put(entry.path, trained.store.read_bytes(entry.path))
    recipe = trained.recipe(seed=3)
    there = generate_pictures(recipe.model_copy(update={"root": "memory://generation-test/root"}))["generated"]
    here = generate_pictures(recipe)["generated"]
    assert there == here
    assert {e.path: remote.read_bytes(e.path) for e in remote.files(there)} == trained.bytes(here)


def test_generate_without_an_exported_model_says_so(tmp_path, trained):
    recipe = trained.recipe().model_copy(update={"root": str(tmp_path)})
    with pytest.raises(RunError, match="run main has no exported model"):
        generate_pictures(recipe)
    with pytest.raises(RunError, match="run main has no exported model"):
        evaluate_model(recipe)


def test_generate_of_a_side_that_is_no_multiple_names_the_setting(trained):
    with pytest.raises(RecipeError, match=r"generate\.width: 50"):
        generate_pictures(trained.recipe(width=50))


def test_documents_of_the_two_parts_share_no_sample(trained):
    plan = plan_of(find_export(trained.store, "main"), "first")
    training = draw_documents(plan, V, "training", 10_000)
    held_out = draw_documents(plan, V, "held_out", 10_000)
    assert not {d.key for d in training} & {d.key for d in held_out}
    held_out_part = {d.key for d in held_out if d.modality != "text"}
    assert len(held_out_part | {d.key for d in training if d.modality != "text"}) == 80
    assert {d.weight for d in training if d.modality == "video"} == {2.0}
    assert all(len(d.ids) <= 256 for d in held_out)


def test_training_documents_are_those_the_plan_holds(trained):
    plan = plan_of(find_export(trained.store, "main"), "first")
    placed = [document for pack in range(plan.num_packs) for document in plan.documents(pack)]
    first_pass = [d for d in placed if d.repetition == 0 and d.source != "texts"]
    drawn = [d for d in draw_documents(plan, V, "training", 10_000) if d.modality != "text"]
    assert sorted(d.length for d in first_pass) == sorted(len(d.ids) for d in drawn)


def test_evaluation_of_a_random_model_is_near_uniform_and_beside_its_baselines(trained):
    row = evaluate_model(trained.recipe())
    found = json.loads(trained.store.read_bytes(row["evaluation"]))
    assert sum(found["documents"].values()) == row["documents"] <= 40
    assert set(found["documents"]) == {"image", "text", "video"}
    losses = {(item["modality"], item["kind"]): item for item in found["losses"]}
    codes = losses["image", "codes"]
    assert codes["loss"] == pytest.approx(math.log(V.size), rel=0.1)
    assert codes["bigram_loss"] < codes["unigram_loss"] < codes["loss"]
    assert codes["share_of_vision"] == pytest.approx(36 / (6 * 7 + 2))
    assert abs(found["captions"]["image"]["gain"]) < 0.05


def test_evaluation_again_reads_what_is_there(trained):
    first = evaluate_model(trained.recipe())
    before = trained.bytes("evaluation")
    assert evaluate_model(trained.recipe()) == first
    assert trained.bytes("evaluation") == before


def test_evaluation_of_a_plan_that_holds_nothing_out_is_left_out(tmp_path):
    store = open_store(str(tmp_path / "root"))
    source = write_token_source(store, "pictures", V, Amounts(images=4, side=4))
    plan = write_plan(store, [source], PlanSettings(phase="first", context=256))
    export(store, tmp_path / "model", plan.plan_id)
    row = evaluate_model(Trained(str(tmp_path / "root"), store).recipe())
    assert row["documents"] == 0


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 50), min_size=1), st.integers(0, 120))
def test_shares_use_up_the_limit_and_take_no_more_than_there_is(available, limit):
    split = shares(available, limit)
    assert all(0 <= split[name] <= number for name, number in available.items())
    assert limit - len(available) < sum(split.values()) or sum(split.values()) == sum(available.values())
    assert sum(split.values()) <= limit
    unfinished = [split[name] for name, number in available.items() if split[name] < number]
    assert not unfinished or np.ptp(unfinished) <= 1
