"""An image tokenizer becomes a video tokenizer that gives, before any training, the same codes and pixels for stills.

Emu3VQVAE puts its temporal layers between the 2-d networks and the codebook: two averaging convolutions, each with a
swish behind it, four channels wide; decoding likewise, for the latents and for the codes that guide the norms, through
the same layers. Swish lets nothing negative through, and a shift, as `vision_start.py` uses, would show at the borders,
where the decoder's first convolution pads with zeros. So latents go through small: swish(y) = y/2 + y²/4 + O(y⁴), and
with a factor -2 between two of them the squares cancel: swish(-2 swish(y)) = -y/2 + O(y³). Scaled so that the largest
code is 1/32, it comes back to 5e-4 of itself, typical ones to 3e-5; zero stays zero, and no precision is lost, in
bfloat16 either. The price: the layers behind take factors of some tens, which an optimizer moves slowly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tokenmill.errors import RecipeError
from tokenmill.train.vision_image_model import ImageModel

SMALL = 1 / 32
"""What the largest code becomes inside the temporal layers."""


def from_image_model(image: ImageModel) -> Any:
    """Return an `Emu3VQVAE` with an image model's weights.

    Raises:
        RecipeError: tensors are missing, left over or of another shape; names them.
    """
    from transformers.models.emu3 import Emu3VQVAE, Emu3VQVAEConfig

    model = Emu3VQVAE(Emu3VQVAEConfig(**image.shape))
    tensors = dict(image.tensors)
    kernels = {name: _taken(tensors, name, image.where) for name in ("quant_conv", "post_quant_conv")}
    _fill(model, tensors, image.where)
    with torch.no_grad():
        _start_encoder(model, *kernels["quant_conv"])
        _start_decoder(model, *kernels["post_quant_conv"])
    return model


def _taken(tensors: dict[str, torch.Tensor], name: str, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Take a 1×1 convolution's matrix and bias out of the tensors."""
    try:
        weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias")
    except KeyError as error:
        raise RecipeError(f"tokenizer.start.from: {where}: lacks {error.args[0]}") from error
    return weight.reshape(weight.shape[:2]), bias


def _fill(model: Any, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    own = {name: value for name, value in model.state_dict().items() if not _is_temporal(name)}
    differing = [
        f"{name} {tuple(tensors[name].shape)} (wanted {tuple(value.shape)})"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    faults = {"lacks": sorted(own.keys() - tensors.keys()), "has besides": sorted(tensors.keys() - own.keys()),
              "differs in": differing}  # fmt: skip
    told = [f"{what} {len(names)}: {', '.join(names[:5])}" for what, names in faults.items() if names]
    if told:
        raise RecipeError(f"tokenizer.start.from: {where}: no MoVQGAN of this shape; it {'; '.join(told)}")
    model.load_state_dict(dict(tensors), strict=False)


def _is_temporal(name: str) -> bool:
    return ".time_" in name or name.startswith(("quant_conv", "post_quant_conv"))


def _start_encoder(model: Any, matrix_ED: torch.Tensor, bias_E: torch.Tensor) -> None:
    """Move the quantizing convolution before the temporal layers, so that what they see is as large as the codes."""
    encoder, last = model.encoder, model.encoder.conv_out
    last.weight.copy_(torch.einsum("ed,dchw->echw", matrix_ED, last.weight))
    last.bias.copy_(matrix_ED @ last.bias + bias_E)
    scale = SMALL / float(model.quantize.embedding.weight.abs().max().clamp_min(1e-12))
    _small_and_back(encoder.time_conv, scale, taps=2)
    _silence(encoder.time_res_stack)
    _matrix(model.quant_conv.conv, torch.eye(len(bias_E)) * (-2 / scale), torch.zeros_like(bias_E))


def _start_decoder(model: Any, matrix_DE: torch.Tensor, bias_D: torch.Tensor) -> None:
    """Let what comes out of the temporal layers small be read large, by all that reads it."""
    decoder, codes_VE = model.decoder, model.quantize.embedding.weight
    largest = max(float(codes_VE.abs().max()), float((codes_VE @ matrix_DE.T + bias_D).abs().max()), 1e-12)
    scale = SMALL / largest
    _matrix(model.post_quant_conv.conv, matrix_DE, bias_D)
    _silence(decoder.time_res_stack)
    _small_and_back(decoder.time_conv, scale, taps=1)
    decoder.conv_in.weight.mul_(-2 / scale)
    for module in decoder.modules():
        if type(module).__name__ == "Emu3VQVAESpatialNorm":
            module.conv_y.weight.mul_(-2 / scale)
            module.conv_b.weight.mul_(-2 / scale)


def _small_and_back(layers: Any, scale: float, *, taps: int) -> None:
    """Make two temporal layers the mean of their last `taps` frames, scaled by `scale` and then by -2."""
    for layer, factor in zip(layers, (scale, -2.0), strict=True):
        _mean_of_frames(layer.conv.conv, factor, taps=taps)


def _mean_of_frames(convolution: nn.Conv3d, factor: float, *, taps: int) -> None:
    assert convolution.bias is not None
    convolution.weight.zero_()
    convolution.bias.zero_()
    for channel in range(convolution.out_channels):
        convolution.weight[channel, channel, -taps:, 1, 1] = factor / taps


def _matrix(convolution: nn.Conv3d, matrix: torch.Tensor, bias: torch.Tensor) -> None:
    """Make a causal convolution a matrix on the newest frame."""
    assert convolution.bias is not None
    convolution.weight.zero_()
    convolution.weight[:, :, -1, 0, 0] = matrix
    convolution.bias.copy_(bias)


def _silence(blocks: Any) -> None:
    """Let residual blocks add nothing yet."""
    for block in blocks:
        block.conv2.conv.weight.zero_()
        block.conv2.conv.bias.zero_()
