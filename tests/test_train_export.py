"""Exports: what comes out opens in transformers, where there is no tokenmill, with the logits of training."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.given_models import given, small_tokenizer
from tokenizers import Tokenizer

from tokenmill.errors import ManifestError
from tokenmill.generate.model import load_model
from tokenmill.generate.pictures import parse_pictures
from tokenmill.generate.sample import generate_vision
from tokenmill.manifests.storage import open_store
from tokenmill.settings_model import ExportSettings, ModelSettings
from tokenmill.tokenize.documents import Assembled
from tokenmill.tokenize.vocabulary import Vocabulary, build_vocabulary, byte_vocabulary, emu3_vocabulary
from tokenmill.train.checkpoints import Checkpoint, RunFolder, exported_step
from tokenmill.train.export import export_checkpoint
from tokenmill.train.export_tokenizer import tokenizer_files
from tokenmill.train.export_weights import grouped
from tokenmill.train.merges import merges_of
from tokenmill.train.model import Batch, PackedModel, build_model, named_parameters
from tokenmill.train.packs import build_pack

TEXT = "A red circle, 2 < 3: déjà-vu?\n\n<|image start|>2*2<|image token|><|visual token 000007|>"
ALONE = """
import json, pathlib, sys
sys.modules["tokenmill"] = None
import torch, transformers
ids = torch.tensor(json.loads(sys.argv[1]))[None]
for folder in sys.argv[2:]:
    config = json.loads(pathlib.Path(folder, "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, told = kind.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    with torch.no_grad():
        logits = model.eval()(ids, use_cache=False).logits[0].float()
    torch.save(logits, pathlib.Path(folder, "logits.pt"))
    drawn = model.generate(ids, max_new_tokens=2, do_sample=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = sys.stdin.read() if folder == sys.argv[2] else text
    found = tokenizer(text, add_special_tokens=False)["input_ids"]
    said = {"ids": found, "text": tokenizer.decode(found), "eos": tokenizer.eos_token_id, "dtype": str(model.dtype)}
    said |= {"generation_eos": model.generation_config.eos_token_id, "drawn": drawn.shape[1] - ids.shape[1]}
    pathlib.Path(folder, "said.json").write_text(json.dumps(said))
try:
    import tokenmill.train
except ImportError:
    print("alone")
"""


def checkpointed(root: Path, model: PackedModel, vocabulary: Vocabulary, run: str) -> RunFolder:
    """Write a model as two ranks write their checkpoint: shares of the parameters, optimizer states among them."""
    folder = RunFolder(open_store(str(root)), run)
    named = {name: parameter.detach() for name, parameter in named_parameters(model)}
    halves = [list(named)[::2], list(named)[1::2]]
    files, tensors = [], {}
    for rank, names in enumerate(halves):
        held = {f"{n}/{part}": named[n] * scale for n in names for part, scale in (("weight", 1.0), ("exp_avg", 0.0))}
        files.append(folder.write_tensors(3, rank, held))
        tensors |= dict.fromkeys(held, files[-1].name)
    folder.publish(
        Checkpoint(step=3, loader={"plan_id": "p"}, model=model.causal.config.to_dict(), vocabulary=vocabulary.spec,
                   vision=None, settings={}, tensors=tensors, files=tuple(files))
    )  # fmt: skip
    return folder


@dataclass(frozen=True)
class Exported:
    """One export: the model that was trained, its folder, and what another process said of it."""

    model: PackedModel
    vocabulary: Vocabulary
    folder: Path

    @property
    def said(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "said.json").read_text()))

    def off(self, ids: list[int]) -> float:
        """The largest difference between the logits of training and those of the other process."""
        packed = build_pack([Assembled(np.array(ids, np.int32), np.ones(len(ids), np.float32))], len(ids), 0)
        self.model.eval()
        with torch.no_grad():
            ours = self.model.logits(Batch.of(packed, "cpu"))
        return float((ours - torch.load(self.folder / "logits.pt")).abs().max())


IDS = list(range(3, 60, 2))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    root = tmp_path_factory.mktemp("exports")
    tokenizer = small_tokenizer(root / "tokenizer")
    words = build_vocabulary({"name": "huggingface", "path": str(tokenizer), "codebook_size": 32})
    letters = byte_vocabulary(64)
    shape = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48}
    sharded, half = ExportSettings(shard_bytes=45_000), ExportSettings(precision="bf16")
    qwen = given("Qwen3", root / "qwen3", tokenizer, tie_word_embeddings=True)
    cases: dict[str, tuple[Any, Vocabulary, ExportSettings]] = {
        "emu3": (shape, letters, sharded),
        "tied": (shape | {"tie_embeddings": True}, letters, ExportSettings()),
        "half": (shape, words, half),
        "qwen3": ({"from": str(qwen)}, words, sharded),
    }
    found = {}
    for name, (settings, vocabulary, how) in cases.items():
        model = build_model(ModelSettings.model_validate(settings), vocabulary, 128)
        folder = checkpointed(root, model, vocabulary, name)
        found[name] = Exported(model, vocabulary, root / export_checkpoint(folder, 3, None, how))
    command = [sys.executable, "-c", ALONE, json.dumps(IDS), *(str(one.folder) for one in found.values())]
    done = subprocess.run(command, input=TEXT, capture_output=True, text=True)
    assert done.stdout.strip() == "alone", done.stderr[-3000:]
    return found


@pytest.mark.parametrize(("name", "tolerance"), [("emu3", 1e-5), ("tied", 1e-5), ("qwen3", 1e-5), ("half", 0.05)])
def test_export_opened_without_tokenmill_has_the_logits_of_training(
    exports: dict[str, Exported], name: str, tolerance: float
) -> None:
    assert exports[name].off(IDS) <= tolerance
    assert exports[name].said["drawn"] == 2


@pytest.mark.parametrize("name", ["emu3", "half"])
def test_export_tokenizer_in_transformers_gives_the_ids_of_training(exports: dict[str, Exported], name: str) -> None:
    vocabulary, said = exports[name].vocabulary, exports[name].said
    text, _, _ = TEXT.partition("<|")
    expected = [*vocabulary.encode(text).tolist(), vocabulary.sov, *vocabulary.encode("2*2").tolist(), vocabulary.sot]

    assert said["ids"] == [*expected, vocabulary.vision_base + 7]
    assert said["text"] == TEXT
    assert said["eos"] == said["generation_eos"] == vocabulary.eos


def test_export_is_cut_into_shards_and_tied_weights_are_written_once(exports: dict[str, Exported]) -> None:
    index = json.loads((exports["emu3"].folder / "model.safetensors.index.json").read_text())
    files = sorted(exports["emu3"].folder.glob("model-*.safetensors"))

    assert len(files) == len(set(index["weight_map"].values())) > 2
    assert max(path.stat().st_size for path in files) < 50_000
    assert "lm_head.weight" in index["weight_map"]
    assert "lm_head.weight" not in (exports["tied"].folder / "model.safetensors").read_bytes()[:4000].decode("latin1")
    assert exports["half"].said["dtype"] == "torch.bfloat16"


@pytest.mark.parametrize("name", ["emu3", "tied", "qwen3"])
def test_export_of_any_architecture_is_opened_for_generation(exports: dict[str, Exported], name: str) -> None:
    loaded = load_model(exports[name].folder)

    (document,) = generate_vision(loaded.model, loaded.vocabulary, ["red"], 2, 3)

    assert type(loaded.model) is type(exports[name].model.causal)
    assert [picture.codes_thw.shape for picture in parse_pictures(document, loaded.vocabulary)] == [(1, 2, 3)]


def test_export_done_again_in_fewer_shards_leaves_no_old_one(exports: dict[str, Exported], tmp_path: Path) -> None:
    model, vocabulary = exports["emu3"].model, exports["emu3"].vocabulary
    folder = checkpointed(tmp_path, model, vocabulary, "again")
    export_checkpoint(folder, 3, None, ExportSettings(shard_bytes=45_000))
    export_checkpoint(folder, 3, None, ExportSettings(precision="bf16"))

    names = {path.name for path in (tmp_path / "checkpoints/again/export").iterdir()}
    assert {name for name in names if name.startswith("model")} == {"model.safetensors"}
    assert (exported_step(folder, "bf16"), exported_step(folder, "fp32"), exported_step(folder)) == (3, None, 3)


def test_export_to_a_remote_store_reads_ranges_and_writes_the_same(exports: dict[str, Exported]) -> None:
    model, vocabulary = exports["emu3"].model, exports["emu3"].vocabulary
    store = open_store("memory://exports")
    folder = RunFolder(store, "main")
    here = exports["emu3"].folder.parent
    for path in (here / "step-00000003").iterdir():
        store.put(folder.at(f"step-00000003/{path.name}"), path.read_bytes())

    export_checkpoint(folder, 3, None, ExportSettings(shard_bytes=45_000))

    assert model.causal.config.vocab_size == vocabulary.size
    for path in sorted(exports["emu3"].folder.glob("model*")):
        assert store.read_bytes(folder.at(f"export/{path.name}")) == path.read_bytes()


def test_export_of_a_checkpoint_that_lacks_a_parameter_names_it(exports: dict[str, Exported], tmp_path: Path) -> None:
    folder = checkpointed(tmp_path, exports["emu3"].model, exports["emu3"].vocabulary, "main")
    record = tmp_path / "checkpoints/main/step-00000003/checkpoint.json"
    value = json.loads(record.read_text())
    del value["tensors"]["model.norm.weight/weight"]
    record.write_text(json.dumps(value))

    with pytest.raises(ManifestError, match=r"no tensor model\.norm\.weight/weight"):
        export_checkpoint(folder, 3)


def test_tokenizer_of_the_emu3_vocabulary_gives_its_ids_in_transformers() -> None:
    spec = find_spec("dashscope")
    if spec is None or spec.origin is None:
        pytest.skip("no qwen.tiktoken: install dashscope")
    vocabulary = emu3_vocabulary(Path(spec.origin).parent / "resources" / "qwen.tiktoken", 64)

    files = tokenizer_files(vocabulary, 5120)

    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in (
        "?\n\n",
        "foo.bar/baz",
        "I'M",
        "。\n",
        "你好，世界",
        "cafe\u0301",
        "64*64",
        "  two  spaces\tand a tab",
    ):
        assert tokenizer.encode(text).ids == vocabulary.encode(text).tolist(), text
    assert tokenizer.token_to_id("<|extra_200|>") == vocabulary.eol
    assert tokenizer.token_to_id("<|visual token 000063|>") == vocabulary.size - 1
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|extra_204|>"


def test_grouped_names_fill_shards_up_to_the_limit() -> None:
    assert list(grouped({"a": 3, "b": 4, "c": 9, "d": 1, "e": 2}, 7)) == [["a", "b"], ["c"], ["d", "e"]]


def test_merges_of_ranks_are_those_the_tokenizer_was_trained_with(tmp_path: Path) -> None:
    description = json.loads((small_tokenizer(tmp_path) / "tokenizer.json").read_text())
    table = {token: index for token, index in description["model"]["vocab"].items() if not token.startswith("<|")}
    order = sorted(table, key=lambda token: (len(token) > 1, table[token]))
    found = merges_of([token.encode("latin1", "replace") for token in order if token.isascii()])
    expected = [tuple(merge) for merge in description["model"]["merges"] if "".join(merge).isascii()]

    names = [token for token in order if token.isascii()]
    assert [(names[left], names[right]) for left, right in found] == expected
