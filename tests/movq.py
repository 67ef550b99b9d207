"""A small MoVQGAN image tokenizer, written from the paper (Zheng et al. 2022) and the names that checkpoints have.

Frozen reference for the tests: attention at the coarsest level, norms of the decoder guided by the codes.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (32, 32, 64, 64)
BLOCKS, CODES, LATENT = 1, 48, 4


def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


class Guided(nn.Module):
    """Group norm, scaled and shifted by what the codes say; plain where there are none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_y, self.conv_b = nn.Conv2d(LATENT, width, 1), nn.Conv2d(LATENT, width, 1)

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        near = functional.interpolate(codes, size=x.shape[-2:], mode="nearest")
        guided: torch.Tensor = self.norm_layer(x) * self.conv_y(near) + self.conv_b(near)
        return guided


class Plain(nn.GroupNorm):
    def __init__(self, width: int) -> None:
        super().__init__(32, width, eps=1e-6)

    def forward(self, x: torch.Tensor, codes: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x)


class Block(nn.Module):
    def __init__(self, before: int, after: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(before), norm(after)  # type: ignore[call-arg]
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor, codes: torch.Tensor | None) -> torch.Tensor:
        hidden = self.conv1(swish(self.norm1(x, codes)))
        hidden = self.conv2(swish(self.norm2(hidden, codes)))
        past: torch.Tensor = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return past + hidden


class Attention(nn.Module):
    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm = norm(width)  # type: ignore[call-arg]
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor, codes: torch.Tensor | None) -> torch.Tensor:
        normed = self.norm(x, codes)
        q, k, v = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[-2:])
        out: torch.Tensor = self.proj_out(seen)
        return x + out


def middle(width: int, norm: type[nn.Module]) -> nn.Module:
    found = nn.Module()
    found.block_1, found.attn_1 = Block(width, width, norm), Attention(width, norm)
    found.block_2 = Block(width, width, norm)
    return found


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.down = nn.ModuleList()
        for level, (before, after) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)):
            down = nn.Module()
            down.block = nn.ModuleList(Block(before if n == 0 else after, after, Plain) for n in range(BLOCKS))
            is_last = level == len(WIDTHS) - 1
            down.attn = nn.ModuleList(Attention(after, Plain) for _ in range(BLOCKS if is_last else 0))
            if not is_last:
                down.downsample = nn.Module()
                down.downsample.conv = nn.Conv2d(after, after, 3, stride=2)
            self.down.append(down)
        self.mid, self.norm_out = middle(WIDTHS[-1], Plain), Plain(WIDTHS[-1])
        self.conv_out = nn.Conv2d(WIDTHS[-1], LATENT, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for down in self.down:
            for number, block in enumerate(down.block):
                x = block(x, None)
                x = down.attn[number](x, None) if len(down.attn) else x
            if hasattr(down, "downsample"):
                x = down.downsample.conv(functional.pad(x, (0, 1, 0, 1)))
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x, None), None), None)
        out: torch.Tensor = self.conv_out(swish(self.norm_out(x)))
        return out


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(LATENT, WIDTHS[-1], 3, padding=1)
        self.mid = middle(WIDTHS[-1], Guided)
        levels, before = [], WIDTHS[-1]
        for level in reversed(range(len(WIDTHS))):
            up, after = nn.Module(), WIDTHS[level]
            up.block = nn.ModuleList(Block(before if n == 0 else after, after, Guided) for n in range(BLOCKS + 1))
            attended = BLOCKS + 1 if level == len(WIDTHS) - 1 else 0
            up.attn = nn.ModuleList(Attention(after, Guided) for _ in range(attended))
            if level:
                up.upsample = nn.Module()
                up.upsample.conv = nn.Conv2d(after, after, 3, padding=1)
            levels.insert(0, up)
            before = after
        self.up, self.norm_out = nn.ModuleList(levels), Guided(WIDTHS[0])
        self.conv_out = nn.Conv2d(WIDTHS[0], 3, 3, padding=1)

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x, codes), codes), codes)
        for up in reversed(self.up):
            for number, block in enumerate(up.block):
                x = block(x, codes)
                x = up.attn[number](x, codes) if len(up.attn) else x
            if hasattr(up, "upsample"):
                x = up.upsample.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        out: torch.Tensor = self.conv_out(swish(self.norm_out(x, codes)))
        return out


class Movq(nn.Module):
    """The whole image tokenizer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(CODES, LATENT)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(LATENT, LATENT, 1), nn.Conv2d(LATENT, LATENT, 1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes (B, h, w) and reconstructions."""
        found = self.quant_conv(self.encoder(pixels)).permute(0, 2, 3, 1)
        codes = torch.cdist(found.flatten(0, 2), self.quantize.embedding.weight).argmin(1).view(found.shape[:3])
        chosen = self.quantize.embedding(codes).permute(0, 3, 1, 2)
        return codes, self.decoder(self.post_quant_conv(chosen), chosen)


def movq(seed: int = 0) -> Movq:
    """Return one whose codes are spread over what its encoder says, as those of a trained one are."""
    torch.manual_seed(seed)
    model = Movq().eval().requires_grad_(False)
    noise = torch.rand(8, 3, 32, 32) * 2 - 1
    smooth = functional.interpolate(noise[..., ::8, ::8], size=(32, 32), mode="bilinear")
    found = model.quant_conv(model.encoder(torch.cat([noise, smooth]))).permute(0, 2, 3, 1).flatten(0, 2)
    model.quantize.embedding.weight.copy_(found[torch.randperm(len(found))[:CODES]] * 1.1)
    return model


def diffusers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a checkpoint as diffusers' `VQModel` has it."""
    last = len(WIDTHS) - 1
    rules = (
        (r"^encoder\.down\.(\d)\.block\.(\d)", r"encoder.down_blocks.\1.resnets.\2"),
        (r"^encoder\.down\.(\d)\.attn\.(\d)", r"encoder.down_blocks.\1.attentions.\2"),
        (r"^encoder\.down\.(\d)\.downsample", r"encoder.down_blocks.\1.downsamplers.0"),
        (r"^decoder\.up\.(\d)\.block\.(\d)", r"decoder.up_blocks.\1.resnets.\2"),
        (r"^decoder\.up\.(\d)\.attn\.(\d)", r"decoder.up_blocks.\1.attentions.\2"),
        (r"^decoder\.up\.(\d)\.upsample", r"decoder.up_blocks.\1.upsamplers.0"),
        (r"mid\.block_1", "mid_block.resnets.0"),
        (r"mid\.block_2", "mid_block.resnets.1"),
        (r"mid\.attn_1", "mid_block.attentions.0"),
        (r"^(encoder.*attentions\.\d)\.norm\.", r"\1.group_norm."),
        (r"^(decoder.*attentions\.\d)\.norm\.", r"\1.spatial_norm."),
        (r"attentions\.(\d)\.([qkv])\.", r"attentions.\1.to_\2."),
        (r"proj_out", "to_out.0"),
        (r"nin_shortcut", "conv_shortcut"),
        (r"norm_out", "conv_norm_out"),
    )
    renamed = {}
    for name, tensor in state.items():
        new = name
        for pattern, to in rules:
            new = re.sub(pattern, to, new)
        new = re.sub(r"up_blocks\.(\d)", lambda found: f"up_blocks.{last - int(found[1])}", new)
        matrix = re.search(r"\.to_[qkv]\.weight|to_out\.0\.weight", new) is not None
        renamed[new] = (tensor[:, :, 0, 0] if matrix else tensor).contiguous()
    return renamed
