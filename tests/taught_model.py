"""A small model that was taught what some pictures and a clip show, exported by the trainer's own export."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from transformers import Emu3ForCausalLM, Emu3TextConfig

from tokenmill.generate.prompts import question_prompt, seeing_prompt
from tokenmill.manifests.storage import open_store
from tokenmill.tokenize.preprocess import resize
from tokenmill.tokenize.vision import load_vision_tokenizer
from tokenmill.tokenize.vocabulary import byte_vocabulary
from tokenmill.train.checkpoints import Checkpoint, RunFolder
from tokenmill.train.export import export_checkpoint

V = byte_vocabulary(2048)
AREAS = {"image": [1024, 1536, 3.0], "video": [256, 256, 3.0]}
CAPTIONS = ("a face", "ein Café", "a rocket", "some coins")
QUESTIONS = {"What is it?": "a thing", "Where?": "here"}


def pictures() -> list[NDArray[np.uint8]]:
    """Crops of real photographs, two at the size the model sees and two larger."""
    names = [(skimage.data.astronaut(), 32), (skimage.data.coffee(), 32), (skimage.data.rocket(), 200)]
    crops = [image[50 : 50 + side, 200 : 200 + side * 4 // 3] for image, side in names]
    coins = skimage.data.coins()[:90, :90]
    return [np.ascontiguousarray(one) for one in (*crops, np.stack([coins] * 3, axis=-1))]


def clip() -> NDArray[np.uint8]:
    """Let a window slide over a photograph for twelve frames."""
    image = skimage.data.astronaut()
    return np.stack([image[100:132, 10 * step : 10 * step + 32] for step in range(12)])


def shown() -> list[tuple[Any, ...]]:
    """Give codes, and for the clip rate and seconds, of the four pictures and the clip: made by hand."""
    vision = load_vision_tokenizer("scenes")
    sizes = [(32, 40), (32, 40), (32, 40), (32, 32)]
    codes = [vision.encode_images(resize(image, size)[None]) for image, size in zip(pictures(), sizes, strict=True)]
    frames = np.stack([resize(frame, (16, 16)) for frame in clip()])
    return [*[(one, None, None) for one in codes], (vision.encode_video(frames[None])[0], 1.0, 12.0)]


@cache
def learned() -> Emu3ForCausalLM:
    """Teach a model of 48 numbers the captions, and the answers to two questions about each (some seconds)."""
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=V.size, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, attention_dropout=0.0, pad_token_id=V.pad,
        bos_token_id=V.bos, eos_token_id=V.eos,
    )  # fmt: skip
    model = Emu3ForCausalLM(config)
    told = [*zip(shown(), (*CAPTIONS, "it moves"), strict=True)]
    pairs = [(seeing_prompt(V, *one), caption) for one, caption in told]
    pairs += [(question_prompt(V, asked, *one), said) for one, _ in told for asked, said in QUESTIONS.items()]
    documents = [np.concatenate([prompt, V.text.encode(said), [V.eos]]) for prompt, said in pairs]
    longest = max(map(len, documents))
    ids = torch.tensor(np.stack([np.pad(one, (0, longest - len(one)), constant_values=V.pad) for one in documents]))
    labels = ids.clone()
    for row, (prompt, said) in zip(labels, pairs, strict=True):
        row[: len(prompt)] = -100
        row[len(prompt) + len(V.text.encode(said)) + 1 :] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][labels[:, 1:] != -100]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][labels[:, 1:] != -100])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    return model.eval()


def export_taught(root: Path, fingerprints: dict[str, str] | None = None) -> Path:
    """Save a checkpoint as the trainer does, and export it by the trainer's own export; returns the export's folder."""
    folder = RunFolder(open_store(str(root)), "tiny")
    tensors = {f"{name}/weight": value.contiguous() for name, value in learned().state_dict().items()}
    file = folder.write_tensors(60, 0, tensors)
    folder.publish(
        Checkpoint(
            step=60, loader={"plan_id": "p"}, model=learned().config.to_dict() | {"architectures": ["Emu3ForCausalLM"]},
            vocabulary=V.spec, vision={"name": "scenes"}, settings={}, tensors=dict.fromkeys(tensors, file.name),
            files=(file,),
        )
    )  # fmt: skip
    return root / export_checkpoint(folder, 60, AREAS, None, fingerprints)
