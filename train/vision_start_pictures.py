"""Start weights fitted to pictures: the network begins as a transform coder, a little better than k-means on patches.

Gradient descent from random weights spends its first hour learning what linear algebra knows: an encoder that gives the
principal components of 8x8 patches, and a decoder that predicts patches from the codes of a cell and its neighbours.
Here both are solved for and written into the network's convolutions; every residual branch starts at zero. Training
then only adds what a linear coder lacks.

Group norms remove the level of whatever they see, and with two channels a group nothing about a flat picture survives.
With three, one can hold a constant K and two the signal and its negative, with four there are +K and -K: mean and
deviation of the group are K's whatever the picture, and swish(x) - swish(-x) = x. So this start wants 96 or 128
channels (32 groups), 32 signals at most, and no residual blocks in the encoder's levels; other shapes start by
`vision_start.start_as_linear`.

Shapes: N pictures, C channels, H W pixels, h w cells (H/8, W/8), D latent channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from tokenmill.errors import RecipeError
from tokenmill.tokenize.vision_frames import embedded, latents, nearest_codes, temporal_features
from tokenmill.train.vision_codebook import Codebook

GROUPS = 32
ENCODER_LEVEL, DECODER_LEVEL = 20.0, 5.0
"""K of the constant channels, in deviations of the signals beside them; the decoder may run in bfloat16."""
WIDE, SMALL = 4.0, 1.0 / 16.0
"""Latents leave the encoder's 2-d half with deviation WIDE along the first component (1 for the codebook), and pass
the temporal layers, each with a swish behind it, as small numbers: swish(-2 swish(y)) = -y/2 + O(y³). Shifted to where
swish is linear they would drag an offset into convolutions, through which a first step of Adam moves everything."""
ENCODER_LEVEL = 20.0
RIDGE = 1e-3
SOLVED_PICTURES = 192


def check_shape(config: Any) -> None:
    """Raise RecipeError where a shape that `TokenizerShape` allows is not of the form this start needs."""
    multiplier, width = tuple(config.channel_multiplier), config.base_channels
    if len(multiplier) != 4 or set(multiplier) != {1} or config.num_res_blocks:
        raise RecipeError(
            "tokenizer.start: pictures needs shape.channel_multiplier [1, 1, 1, 1] and num_res_blocks 0 "
            f"(found {list(multiplier)} and {config.num_res_blocks}); or start from scratch"
        )
    if width not in (3 * GROUPS, 4 * GROUPS):
        raise RecipeError(f"tokenizer.start: pictures needs shape.base_channels of 96 or 128 (found {width})")
    if config.embed_dim > GROUPS:
        raise RecipeError(
            f"tokenizer.start: pictures needs shape.embed_dim of {GROUPS} at most (found {config.embed_dim})"
        )


@torch.no_grad()
def start_from_pictures(model: Any, pixels_NCHW: torch.Tensor, *, generator: torch.Generator) -> None:
    """Set the weights of an `Emu3VQVAE` in place, its codebook included, from pictures of one size in -1..1.

    Convolutions are solved for from some of the pictures, the codebook (k-means) sees all.
    """
    some_NCHW = pixels_NCHW[:: -(-len(pixels_NCHW) // SOLVED_PICTURES)]
    _quiet_branches(model)
    _encoder(model, some_NCHW)
    found = [latents(model, part[:, None]) for part in torch.split(pixels_NCHW, 32)]
    flat_ND = torch.cat(found).permute(0, 1, 3, 4, 2).flatten(0, 3)
    Codebook.of(model.quantize.embedding.weight).settle(flat_ND, generator=generator)
    quantized = embedded(model, nearest_codes(model, latents(model, some_NCHW[:, None])))
    _decoder(model, quantized, some_NCHW)


def _quiet_branches(model: Any) -> None:
    """Residual branches begin at zero, convolutions beside the signal's channels small."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("ResnetBlock"):
            convolution = getattr(module.conv2, "conv", module.conv2)
            convolution.weight.zero_()
            convolution.bias.zero_()
        elif kind == "Emu3VQVAEAttentionBlock":
            module.out_proj.weight.zero_()
            module.out_proj.bias.zero_()


def _encoder(model: Any, pixels_NCHW: torch.Tensor) -> None:
    """Principal components of 8x8 patches, from space to depth three times."""
    encoder = model.encoder
    _identity(encoder.conv_in, 3)
    downs = [level.downsample.conv for level in encoder.down_block.down[:3]]
    for down, channels in zip(downs[:2], (3, 12), strict=True):
        _space_to_depth(down, channels)
    hidden = encoder.down_block.down[0].downsample(encoder.conv_in(pixels_NCHW))
    quarter_NCHW = encoder.down_block.down[1].downsample(hidden)[:, :48]
    patches_ND = functional.pixel_unshuffle(quarter_NCHW, 2).permute(0, 2, 3, 1).flatten(0, 2)
    count, last = model.config.latent_channels, downs[2]
    mean, components_DK, deviations_D = _principal(patches_ND, count)
    rows = (components_DK / deviations_D[:, None]).reshape(-1, 48, 2, 2)
    last.weight.zero_()
    last.bias.zero_()
    for places, sign in zip(_pairs(last.out_channels, count), (1.0, -1.0), strict=True):
        last.weight[places, :48, :2, :2] = sign * rows
        last.bias[places] = -sign * (components_DK @ mean) / deviations_D
    _beside_levels(last, encoder.norm_out, ENCODER_LEVEL, spread=1.0)
    _from_pairs(encoder.conv_out, WIDE * deviations_D / deviations_D[0])
    _through_time(model)


def _pairs(channels: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The channels of `count` signals, and of their negatives: the last two of a group each."""
    last = (torch.arange(count) + 1) * (channels // GROUPS) - 1
    return last - 1, last


def _beside_levels(convolution: Any, norm: Any, level: float, *, spread: float) -> None:
    """Make constants of what a group has beside its pair, and a norm that undoes its own division and subtraction.

    `spread` is the mean square of the signals.
    """
    group = convolution.out_channels // GROUPS
    constants = torch.tensor([level, -level][: group - 2])
    for channel, constant in enumerate(constants):
        convolution.weight[channel::group] = 0.0
        convolution.bias[channel::group] = constant
    mean = float(constants.sum()) / group
    squares = (float(constants.square().sum()) + 2 * spread) / group
    norm.weight.fill_((squares - mean**2) ** 0.5)
    norm.bias.fill_(mean)


def _from_pairs(convolution: Any, scale_D: torch.Tensor) -> None:
    """Output d is `scale` times signal d, from swish of the signal less swish of its negative."""
    convolution.weight.zero_()
    convolution.bias.zero_()
    outputs = torch.arange(len(scale_D))
    for places, sign in zip(_pairs(convolution.in_channels, len(scale_D)), (1.0, -1.0), strict=True):
        convolution.weight[outputs, places, 1, 1] = sign * scale_D


def _principal(rows_ND: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, the first `count` principal directions (rows) and the deviations along them."""
    mean = rows_ND.mean(0)
    centred = (rows_ND - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    order = values.argsort(descending=True)[:count]
    return mean, vectors[:, order].T.float(), values[order].clamp_min(1e-8).sqrt().float()


def _identity(convolution: Any, channels: int) -> None:
    """The first `channels` outputs are the inputs."""
    convolution.weight[:channels].zero_()
    convolution.bias[:channels].zero_()
    for channel in range(channels):
        convolution.weight[channel, channel, 1, 1] = 1.0


def _space_to_depth(convolution: Any, channels: int) -> None:
    """Four outputs for each of `channels`: the pixels of a 2x2 block (as `pixel_unshuffle` orders them)."""
    convolution.weight[: 4 * channels].zero_()
    convolution.bias[: 4 * channels].zero_()
    for channel in range(channels):
        for place in range(4):
            convolution.weight[4 * channel + place, channel, place // 2, place % 2] = 1.0


def _through_time(model: Any) -> None:
    """Temporal layers as averages, of small numbers; what two swishes make of them is undone behind the encoder's."""
    first, second = model.encoder.time_conv
    _average(first.conv.conv, taps=2, gain=SMALL)
    _average(second.conv.conv, taps=2, gain=-2.0)
    _average(model.quant_conv.conv, taps=1, gain=-2.0 / SMALL / WIDE)
    _average(model.post_quant_conv.conv, taps=1, gain=SMALL)
    first, second = model.decoder.time_conv
    _average(first.conv.conv, taps=1, gain=1.0)
    _average(second.conv.conv, taps=1, gain=-2.0)


def _average(convolution: Any, *, taps: int, gain: float) -> None:
    """Each channel the mean of its own last `taps` frames, times `gain`."""
    convolution.weight.zero_()
    middle = [size // 2 for size in convolution.kernel_size[1:]]
    for channel in range(convolution.out_channels):
        convolution.weight[channel, channel, -taps:, middle[0], middle[1]] = gain / taps
    convolution.bias.zero_()


def _decoder(model: Any, quantized_N1Dhw: torch.Tensor, pixels_NCHW: torch.Tensor) -> None:
    """Solve each upsampling convolution for the patches of the next finer grid, from codes to pixels."""
    decoder = model.decoder
    transposed = quantized_N1Dhw.transpose(1, 2)
    hidden, guide = (temporal_features(decoder, x)[:, :, 0] for x in (model.post_quant_conv(transposed), transposed))
    _calm_guides(decoder, guide.mean((0, 2, 3)))
    _each_by_itself(decoder.conv_in, hidden)
    hidden = decoder.conv_in(hidden)
    known = quantized_N1Dhw.shape[2]
    for level, block in ((3, 4), (2, 2), (1, 1)):
        upsample = decoder.up_block.up[level].upsample
        wanted = functional.pixel_unshuffle(pixels_NCHW, block) if block > 1 else pixels_NCHW
        weight, bias = _solve(hidden[:, :known], wanted)
        _write(upsample.conv, weight, bias, pairs=block == 1)
        hidden, known = upsample(hidden), wanted.shape[1]
    signal = hidden[:, _pairs(hidden.shape[1], 3)[0]]
    _beside_levels(upsample.conv, decoder.norm_out.norm_layer, DECODER_LEVEL, spread=float(signal.square().mean()))
    _from_pairs(decoder.conv_out, torch.ones(3))


def _calm_guides(decoder: Any, mean_D: torch.Tensor) -> None:
    """The codes' say in each norm begins small: a factor near one, an offset near zero."""
    for module in decoder.modules():
        if type(module).__name__ == "Emu3VQVAESpatialNorm":
            module.conv_y.weight.mul_(0.1)
            module.conv_b.weight.mul_(0.1)
            module.conv_y.bias.copy_(1.0 - module.conv_y.weight[:, :, 0, 0] @ mean_D)
            module.conv_b.bias.copy_(-module.conv_b.weight[:, :, 0, 0] @ mean_D)
    last: Any = decoder.norm_out
    last.conv_y.weight.zero_()
    last.conv_b.weight.zero_()
    last.conv_y.bias.fill_(1.0)
    last.conv_b.bias.zero_()


def _each_by_itself(convolution: Any, hidden_NDhw: torch.Tensor) -> None:
    """The first channels are the latent ones, mean 0 and deviation 1."""
    mean, deviation = hidden_NDhw.mean((0, 2, 3)), hidden_NDhw.std((0, 2, 3)).clamp_min(1e-6)
    for channel in range(len(mean)):
        convolution.weight[channel] = 0.0
        convolution.weight[channel, channel, 1, 1] = 1.0 / deviation[channel]
        convolution.bias[channel] = -mean[channel] / deviation[channel]


def _solve(
    hidden_NCHW: torch.Tensor, wanted_NKHW: torch.Tensor, *, rows: int = 60_000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares for a 3x3 convolution of the doubled `hidden`: weight (K, C, 3, 3) and bias (K)."""
    channels = hidden_NCHW.shape[1]
    per_picture = wanted_NKHW.shape[-1] * wanted_NKHW.shape[-2]
    pictures = max(1, min(len(hidden_NCHW), rows // per_picture))
    step = max(1, len(hidden_NCHW) // pictures)
    size = 9 * channels + 1
    left, right = torch.zeros(size, size), torch.zeros(size, wanted_NKHW.shape[1])
    for one, other in zip(torch.split(hidden_NCHW[::step], 8), torch.split(wanted_NKHW[::step], 8), strict=True):
        doubled = functional.interpolate(one, scale_factor=2.0, mode="nearest")
        columns = functional.unfold(doubled, 3, padding=1).transpose(1, 2).flatten(0, 1)
        columns = functional.pad(columns, (0, 1), value=1.0)
        left.addmm_(columns.T, columns)
        right.addmm_(columns.T, other.flatten(2).transpose(1, 2).flatten(0, 1))
    diagonal = left.diagonal()
    diagonal += RIDGE * diagonal.mean()
    solved = torch.linalg.solve(left.double(), right.double()).float()
    return solved[:-1].T.reshape(-1, channels, 3, 3), solved[-1]


def _write(convolution: Any, weight: torch.Tensor, bias: torch.Tensor, *, pairs: bool) -> None:
    """Put a solved convolution into the first channels, or into pairs: each and its negative."""
    count, channels = len(weight), convolution.out_channels
    written = zip(_pairs(channels, count), (1.0, -1.0), strict=True) if pairs else [(torch.arange(count), 1.0)]
    for places, sign in written:
        convolution.weight[places] = 0.0
        convolution.weight[places, : weight.shape[1]] = sign * weight
        convolution.bias[places] = sign * bias
