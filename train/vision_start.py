"""Start weights for a small Emu3VQVAE that begin as a linear autoencoder.

Drawn at random as the port does it, up to eight four-channel swish layers lie between the pixels and the codebook, and
group norms remove the level of a picture. Learning around both costs thousands of steps, which two cores don't have
(measured after 180 steps: 16.5 dB on held-out photographs, 20.4 with this start). So here every residual branch starts
at zero, the temporal layers as plain averages, and the last norms as nearly the identity. All of it stays trainable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SHIFT = 3.0
"""Where swish is nearly linear: features are shifted here before it and back behind it."""


@torch.no_grad()
def start_as_linear(model: Any) -> None:
    """Set the weights of an `Emu3VQVAE` in place."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("ResnetBlock"):
            _conv(module.conv2).weight.zero_()
            _conv(module.conv2).bias.zero_()
        elif kind == "Emu3VQVAEAttentionBlock":
            module.out_proj.weight.zero_()
            module.out_proj.bias.zero_()
        elif kind == "Emu3VQVAESpatialNorm":
            module.conv_y.weight.mul_(0.1)
            module.conv_y.bias.copy_(1.0 - SHIFT * module.conv_y.weight.sum((1, 2, 3)))
            module.conv_b.bias.copy_(-SHIFT * module.conv_b.weight.sum((1, 2, 3)))
        elif kind in ("Emu3VQVAEEncoderConvDownsample", "Emu3VQVAEEncoderConvUpsample"):
            module.conv.weight.mul_(0.5**0.5)
    model.decoder.conv_out.weight.mul_(0.2)
    keep_level(model.encoder.norm_out, model.encoder.middle_block.block_2.conv2)
    keep_level(model.decoder.norm_out.norm_layer, model.decoder.up_block.up[0].block[-1].conv2)
    for index, layer in enumerate(model.encoder.time_conv):
        pass_through(layer.conv.conv, taps=2, bias=SHIFT if index == 0 else 0.0)
    pass_through(model.quant_conv.conv, taps=1, bias=-SHIFT)
    pass_through(model.post_quant_conv.conv, taps=1, bias=0.0)
    for index, layer in enumerate(model.decoder.time_conv):
        pass_through(layer.conv.conv, taps=1, bias=SHIFT if index == 0 else 0.0)


@torch.no_grad()
def keep_level(norm: nn.GroupNorm, before: nn.Conv2d) -> None:
    """Let the level of a flat picture through a group norm, which would remove it.

    Groups of two channels hold +K and -K (the bias of the convolution before) beside the signal: mean 0 and deviation K
    whatever the picture. With 32 channels every channel is a group and this cannot be: what a network of that width
    then gets wrong is the pictures' mean colour (measured: 1 to 4 dB of a photograph's PSNR).
    """
    if norm.num_channels < 2 * norm.num_groups or before.bias is None:
        return
    sign = torch.tensor([1.0, -1.0]).repeat(norm.num_channels // 2)
    before.bias.copy_(SHIFT * sign)
    norm.weight.fill_(SHIFT)
    norm.bias.copy_(-SHIFT * sign)


@torch.no_grad()
def pass_through(convolution: nn.Conv3d, *, taps: int, bias: float) -> None:
    """Make a causal 3-d convolution the mean of its last `taps` frames, plus `bias`; its other weights stay small."""
    middle = [size // 2 for size in convolution.kernel_size[1:]]
    convolution.weight.mul_(0.05)
    for channel in range(convolution.out_channels):
        convolution.weight[channel, channel, -taps:, middle[0], middle[1]] += 1.0 / taps
    assert convolution.bias is not None
    convolution.bias.fill_(bias)


def _conv(module: Any) -> Any:
    """The convolution itself: the port wraps its 3-d ones."""
    return getattr(module, "conv", module)
