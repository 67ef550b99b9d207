"""A small Emu3 vision tokenizer on disk as BAAI releases it, inside of a whole Emu3 of transformers, and by itself.

The release's names are written out from its own code (baaivision/Emu3, `emu3/tokenizer/modeling_emu3visionvq.py`), not
taken from the mapping under test.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CODES = 256
SHAPE = {"codebook_size": CODES, "base_channels": 32, "channel_multiplier": [1, 1, 1, 2], "num_res_blocks": 1}
SHAPE |= {"attn_resolutions": [3], "hidden_size": 64}
RELEASED_CONFIG = {
    "architectures": ["Emu3VisionVQModel"],
    "attn_resolutions": [3],
    "auto_map": {"AutoModel": "modeling_emu3visionvq.Emu3VisionVQModel"},
    "ch": 32,
    "ch_mult": [1, 1, 1, 2],
    "codebook_size": CODES,
    "double_z": False,
    "dropout": 0.0,
    "embed_dim": 4,
    "in_channels": 3,
    "model_type": "Emu3VisionVQ",
    "num_res_blocks": 1,
    "out_channels": 3,
    "temporal_downsample_factor": 4,
    "z_channels": 4,
}


def small_port() -> Any:
    """Return an `Emu3VQVAE` in which every weight matters and codes spread over the codebook."""
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    torch.manual_seed(5)
    model = Emu3VQVAE(Emu3VQVAEConfig(**SHAPE)).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.1)
            elif name.endswith("num_batches_tracked"):
                value.fill_(1234)
        pixels_BTCHW = torch.rand(2, 4, 3, 128, 128) * 2 - 1
        latents_BCThw = model.quant_conv(model.encoder(pixels_BTCHW).permute(0, 2, 1, 3, 4))
        latents_ND = latents_BCThw.permute(0, 2, 3, 4, 1).flatten(0, 3)
        model.quantize.embedding.weight.copy_(latents_ND[torch.randperm(len(latents_ND))[:CODES]])
        spread = model.decode(torch.randint(CODES, (1, 1, 6, 8))).std()
        model.decoder.conv_out.weight.mul_(0.4 / spread)  # else every pixel would be black or white
        model.decoder.conv_out.bias.zero_()
    return model


def released_state(model: Any) -> dict[str, torch.Tensor]:
    """Return its weights under the release's names and in its shapes."""
    found = {}
    for name, value in model.state_dict().items():
        if re.search(r"attn.*(proj)\.weight$", name):
            value = value[:, :, None, None]
        found[_released(name)] = value.contiguous()
    return found


def _released(name: str) -> str:
    name = name.replace("encoder.down_block.down.", "encoder.down.").replace("decoder.up_block.up.", "decoder.up.")
    name = name.replace("middle_block.attn_norm.", "mid.attn_1.norm.").replace("middle_block.", "mid.")
    name = re.sub(r"attn_norms\.(\d+)\.", r"attn.\1.norm.", name)
    name = re.sub(r"\.([qkv])_proj\.", r".\1.", name)
    return name.replace(".out_proj.", ".proj_out.")


def write_released(folder: Path, model: Any) -> Path:
    """Write `config.json` and `model.safetensors` as BAAI's release has them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(RELEASED_CONFIG))
    save_file(released_state(model), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_whole(folder: Path, model: Any) -> Path:
    """Save a really small `Emu3ForConditionalGeneration` with this tokenizer inside, in many shards."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration
    from transformers.models.emu3 import Emu3TextConfig

    sizes = {"vocab_size": 2000, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    text = Emu3TextConfig(**sizes, **heads, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    words = {"<image>": 5} | {f"<|visual token {code:06d}|>": 10 + code for code in range(CODES)}
    whole = Emu3ForConditionalGeneration(Emu3Config(vq_config=model.config, text_config=text, vocabulary_map=words))
    whole.model.vqmodel.load_state_dict(model.state_dict())
    whole.save_pretrained(folder, max_shard_size="200KB")
    return folder


def rename_inside(folder: Path, before: str, after: str) -> None:
    """Give another prefix to the tokenizer's weights of a whole model on disk."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {_prefixed(name, before, after): file for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in folder.glob("*.safetensors"):
        state = {_prefixed(name, before, after): value for name, value in load_file(path).items()}
        save_file(state, path, metadata={"format": "pt"})


def _prefixed(name: str, before: str, after: str) -> str:
    return after + name.removeprefix(before) if name.startswith(before) else name


def shards(folder: Path) -> dict[str, set[str]]:
    """Return each shard's names."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found: dict[str, set[str]] = {}
    for name, file in index["weight_map"].items():
        found.setdefault(file, set()).add(name)
    return found
