"""The 2-d halves of Emu3VQVAE for inference: the port's own weights in fewer passes over memory, channels last.

What the port does with new tensors happens in place (swish, the sum with the residual), and the decoder's spatial
norms modulate by their 1/8-resolution maps without enlarging them first: a 1x1 convolution and nearest-neighbour
enlargement commute. Not for training, which needs what is overwritten here (`vision_frames` has that).

Shapes: N frames, C channels, H W pixels, D code width, h w latent sides. Bytes come as NHWC, which is channels-last
NCHW without a copy; the convolutions' weights have to be channels-last too (`channels_last`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def channels_last(half: Any) -> None:
    """Lay the 2-d convolutions of an encoder or decoder out as `encoded` and `decoded` need them."""
    for module in half.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def normalised(frames_NHWC: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Map bytes to -1..1 on their device, as `preprocess.normalise` does to the last bit; (N, C, H, W)."""
    steps = torch.full((), 255.0, device=frames_NHWC.device)  # a tensor: by a plain number CUDA multiplies
    scaled = frames_NHWC.permute(0, 3, 1, 2).float() / steps
    return scaled.sub_(0.5).div_(0.5).to(dtype)


def encoded(encoder: Any, pixels_NCHW: torch.Tensor) -> torch.Tensor:
    """Features (N, D, h, w) of frames."""
    hidden = encoder.conv_in(pixels_NCHW)
    for level in encoder.down_block.down:
        for number, block in enumerate(level.block):
            hidden = _residual_block(block, hidden, None)
            if len(level.attn):
                hidden = _attention(level.attn[number], level.attn_norms[number], hidden, None)
        if hasattr(level, "downsample"):
            hidden = level.downsample(hidden)
    hidden = _middle(encoder.middle_block, hidden, None)
    result: torch.Tensor = encoder.conv_out(_swished_norm(encoder.norm_out, hidden, None))
    return result


def decoded(decoder: Any, hidden_NDhw: torch.Tensor, guide_NDhw: torch.Tensor) -> torch.Tensor:
    """Pixels (N, C, H, W) in -1..1 of what the temporal layers made of codes, and of the codes themselves."""
    hidden = _middle(decoder.middle_block, decoder.conv_in(hidden_NDhw), guide_NDhw)
    for level in reversed(decoder.up_block.up):
        for number, block in enumerate(level.block):
            hidden = _residual_block(block, hidden, guide_NDhw)
            if len(level.attn):
                hidden = _attention(level.attn[number], level.attn_norms[number], hidden, guide_NDhw)
        if hasattr(level, "upsample"):
            hidden = level.upsample(hidden)
    result: torch.Tensor = decoder.conv_out(_swished_norm(decoder.norm_out, hidden, guide_NDhw))
    return result


def _middle(block: Any, hidden: torch.Tensor, guide: torch.Tensor | None) -> torch.Tensor:
    hidden = _residual_block(block.block_1, hidden, guide)
    hidden = _attention(block.attn_1, block.attn_norm, hidden, guide)
    return _residual_block(block.block_2, hidden, guide)


def _residual_block(block: Any, residual: torch.Tensor, guide: torch.Tensor | None) -> torch.Tensor:
    hidden = block.conv1(_swished_norm(block.norm1, residual, guide))
    hidden = block.conv2(_swished_norm(block.norm2, hidden, guide))
    passed = residual if block.in_channels == block.out_channels else _pointwise(block.nin_shortcut, residual)
    result: torch.Tensor = hidden.add_(passed)
    return result


def _attention(attention: Any, norm: Any, residual: torch.Tensor, guide: torch.Tensor | None) -> torch.Tensor:
    height, width = residual.shape[2:]
    tokens = _norm(norm, residual, guide).flatten(2).transpose(1, 2)
    attended: torch.Tensor = attention(tokens)[0].transpose(1, 2).unflatten(2, (height, width))
    return attended.add_(residual)


def _pointwise(convolution: Any, hidden: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution as a product of matrices: oneDNN's rounds otherwise with another number of threads."""
    rows = functional.linear(hidden.permute(0, 2, 3, 1), convolution.weight.flatten(1), convolution.bias)
    return rows.permute(0, 3, 1, 2)


def _swished_norm(norm: Any, hidden: torch.Tensor, guide: torch.Tensor | None) -> torch.Tensor:
    return functional.silu(_norm(norm, hidden, guide), inplace=True)


def _norm(norm: Any, hidden: torch.Tensor, guide: torch.Tensor | None) -> torch.Tensor:
    """Group norm; with a guide the decoder's spatial norm, which scales and shifts by maps made of the guide."""
    if guide is None:
        return _group_norm(norm, hidden)
    normed = _group_norm(norm.norm_layer, hidden)
    rows, columns = guide.shape[2:]
    blocks = torch.unflatten(torch.unflatten(normed, 3, (columns, -1)), 2, (rows, -1))
    scale, shift = (convolution(guide)[:, :, :, None, :, None] for convolution in (norm.conv_y, norm.conv_b))
    blocks.mul_(scale).add_(shift)
    return normed


def _group_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Group norm whose sums don't hang on the number of threads, as those of torch's channels-last one on CPUs do.

    The mean is taken off before squares are summed: of a picture of one colour E[x²] - E[x]² is rounding alone.
    """
    if hidden.device.type != "cpu":
        return functional.group_norm(hidden, norm.num_groups, norm.weight, norm.bias, norm.eps)
    values = hidden.float()
    size = values[0].numel() / norm.num_groups
    mean = _per_group(norm, values.sum((2, 3))) / size
    apart = values - _per_channel(mean.expand(-1, -1, values.shape[1] // norm.num_groups))
    variance = _per_group(norm, apart.square_().sum((2, 3))) / size
    scale = norm.weight.double().view(norm.num_groups, -1) / variance.add_(norm.eps).sqrt_()
    shift = norm.bias.double().view(norm.num_groups, -1) - mean * scale
    return torch.addcmul(_per_channel(shift), values, _per_channel(scale)).to(hidden.dtype)


def _per_group(norm: Any, sums_NC: torch.Tensor) -> torch.Tensor:
    return torch.unflatten(sums_NC.double(), 1, (norm.num_groups, -1)).sum(2, keepdim=True)


def _per_channel(value_NGc: torch.Tensor) -> torch.Tensor:
    return value_NGc.flatten(1)[:, :, None, None].float()
