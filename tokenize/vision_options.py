"""How a vision tokenizer runs, as the recipe says it beside the tokenizer's name (`tokenize.vision`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenmill.errors import RecipeError

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionOptions:
    """Precision, device and batches of `Emu3VQVAE`.

    Attributes:
        dtype: of the 2-d networks; the small temporal layers and the search for codes stay in float32.
        batch_size: images, windows or latent frames a batch; batches of many pixels run in parts (`vision_device`).
        compile: by torch.compile, once for all sizes; does not pay on CPUs.
        cuda_graphs: replays the compiled kernels without launching each; for CUDA and small pictures.
    """

    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int = 16
    compile: bool = False
    cuda_graphs: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What of it may change codes; what says nothing is left out, so that a new option makes no new codes."""
        compiled = {"compile": True} if self.compile else {}
        return {"dtype": self.dtype, "batch_size": self.batch_size, **compiled}

    @staticmethod
    def of(spec: object, options: dict[str, Any]) -> VisionOptions:
        """Check the options of a recipe; raises RecipeError naming the tokenizer and the option."""
        unknown = sorted(options.keys() - set(VisionOptions.__dataclass_fields__))
        if unknown:
            known = ", ".join(VisionOptions.__dataclass_fields__)
            raise RecipeError(f"vision tokenizer {spec}: unknown option {', '.join(unknown)}; there are {known}")
        made = VisionOptions(**options)
        wrong = made._fault()
        if wrong:
            raise RecipeError(f"vision tokenizer {spec}: {wrong}")
        return made

    def _fault(self) -> str | None:
        if self.dtype not in PRECISIONS:
            return f"dtype {self.dtype!r} is not one of {', '.join(PRECISIONS)}"
        if type(self.device) is not str:
            return f"device {self.device!r} must be a name, such as cpu or cuda:0"
        if type(self.batch_size) is not int or self.batch_size < 1:
            return f"batch_size {self.batch_size!r} must be at least 1"
        if type(self.device) is not str:
            return f"device {self.device!r} must be a name, as cpu or cuda:0"
        for name in ("compile", "cuda_graphs"):
            if type(getattr(self, name)) is not bool:
                return f"{name} {getattr(self, name)!r} must be true or false"
        if self.cuda_graphs and not (self.compile and self.device.startswith("cuda")):
            return "cuda_graphs needs compile: true and a cuda device"
        return None
