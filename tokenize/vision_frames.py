"""Emu3VQVAE on single frames: the same codes and pixels as the port for a quarter of the spatial work.

The port encodes an image as four equal frames and decodes four to keep one. Its encoder and decoder are frame-wise
2-d networks apart from a few 4-channel temporal convolutions at 1/8 resolution, so one pass of the 2-d part and
repeated (or, decoding, sliced) features is exact: 100 % of codes equal, a quarter of the time.

Shapes: B batch, T frames, C colours, H W pixels, S latent frames, D code width, h w latent sides (H/8, W/8).
`model` is a transformers `Emu3VQVAE` throughout.
"""

from __future__ import annotations

from typing import Any

import torch

from tokenmill.tokenize.nearest import nearest

WINDOW = 4
"""Frames that make one latent frame; video is cut into windows of so many, each coded by itself (EMU3.md §2)."""


def latents(model: Any, pixels_BTCHW: torch.Tensor) -> torch.Tensor:
    """Latents before quantization, (B, 1, D, h, w), of images (T = 1) or of 4-frame windows (T = 4)."""
    features = spatial_features(model.encoder, pixels_BTCHW.flatten(0, 1))
    return latents_of_features(model, torch.unflatten(features, 0, pixels_BTCHW.shape[:2]))


def latents_of_features(model: Any, features_BTDhw: torch.Tensor) -> torch.Tensor:
    """The temporal half of the encoder: (B, 1, D, h, w) of the features of one frame or of four."""
    encoder = model.encoder
    features = features_BTDhw.transpose(1, 2)
    if features.shape[2] == 1:
        features = features.expand(-1, -1, WINDOW, -1, -1)
    for convolution in encoder.time_conv:
        features = swish(convolution(features))
    for block in encoder.time_res_stack:
        features = block(features)
    result: torch.Tensor = model.quant_conv(features).transpose(1, 2)
    return result


def spatial_features(encoder: Any, pixels_NCHW: torch.Tensor) -> torch.Tensor:
    """The 2-d half of the encoder, frame by frame: (N, D, h, w)."""
    hidden = encoder.middle_block(encoder.down_block(encoder.conv_in(pixels_NCHW)))
    result: torch.Tensor = encoder.conv_out(swish(encoder.norm_out(hidden)))
    return result


def nearest_codes(model: Any, latents_BSDhw: torch.Tensor) -> torch.Tensor:
    """Codes of latents, int64 (B, S, h, w), in bounded memory: the port makes the whole matrix of distances."""
    places = latents_BSDhw.permute(0, 1, 3, 4, 2)
    return nearest(places.flatten(0, 3), model.quantize.embedding.weight).view(places.shape[:4])


def embedded(model: Any, codes_BShw: torch.Tensor) -> torch.Tensor:
    """The codebook vectors of `codes`, (B, S, D, h, w)."""
    result: torch.Tensor = model.quantize.embedding(codes_BShw).permute(0, 1, 4, 2, 3).contiguous()
    return result


def pixels(model: Any, quantized_BSDhw: torch.Tensor, frames: int = WINDOW) -> torch.Tensor:
    """The first `frames` of the decoded frames, (B, frames, C, H, W); an image is `frames=1`, as in the port."""
    decoder = model.decoder
    hidden, guide = decoder_inputs(model, quantized_BSDhw, frames)
    hidden = decoder.middle_block(decoder.conv_in(hidden), guide)
    hidden = decoder.norm_out(decoder.up_block(hidden, guide), guide)
    result: torch.Tensor = decoder.conv_out(swish(hidden)).unflatten(0, (len(quantized_BSDhw), -1))
    return result


def decoder_inputs(model: Any, quantized_BSDhw: torch.Tensor, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The temporal half of the decoder: features and guide, each (B·frames, D, h, w), for its 2-d half."""
    quantized = quantized_BSDhw.transpose(1, 2)
    made = (temporal_features(model.decoder, x)[:, :, :frames] for x in (model.post_quant_conv(quantized), quantized))
    hidden, guide = (x.transpose(1, 2).flatten(0, 1) for x in made)
    return hidden, guide


def temporal_features(decoder: Any, features_BDShw: torch.Tensor) -> torch.Tensor:
    """The temporal half of the decoder: S latent frames become 4·S."""
    for block in decoder.time_res_stack:
        features_BDShw = block(features_BDShw)
    for convolution in decoder.time_conv:
        features_BDShw = swish(convolution(features_BDShw))
    return features_BDShw


def swish(hidden: torch.Tensor) -> torch.Tensor:
    """x·σ(x), written as the port writes it so that the codes agree to the last bit."""
    return hidden * torch.sigmoid(hidden)
