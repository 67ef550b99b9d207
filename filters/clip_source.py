"""Which CLIP a recipe names: its configuration, preprocessing and weights, all known before torch is imported.

    model: ViT-L-14, pretrained: openai            a name and a tag of open_clip's; fetched from the hub once
    model: ViT-L-14, pretrained: /models/x.pt      the same network with weights of one's own
    model: hf-hub:owner/repository                 a repository with open_clip_config.json
    model: /models/clip                            a folder with the same file and weights, as open_clip saves them

Only a tag needs open_clip itself to be known (its preprocessing stands in open_clip's code).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenmill.errors import RecipeError
from tokenmill.filters.framing import Framing
from tokenmill.filters.weights_file import HUB, hub_file, weights_digest, weights_path
from tokenmill.manifests.identity import digest_of

CONFIG = "open_clip_config.json"
DEFAULT_TAG = "openai"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
_WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
_FILE_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A CLIP model as the recipe names it; everything is looked up once a process.

    Attributes:
        model: a name of open_clip's, a folder, or `hf-hub:owner/repository`.
        pretrained: a tag or a file of weights; empty means `openai` for a name, and for a folder the weights in it.
    """

    model: str
    pretrained: str = ""

    @property
    def folder(self) -> Path | None:
        """The folder that describes the model, None where open_clip knows its name."""
        if self.model.startswith(HUB):
            return hub_file(self.model.removeprefix(HUB), CONFIG, f"model {self.model}").parent
        path = Path(self.model.removeprefix("local-dir:")).expanduser()
        return path if path.is_dir() or self.model.startswith("local-dir:") or "/" in self.model else None

    @property
    def tag(self) -> str:
        """The tag whose weights are meant, empty where a file or a folder's own are."""
        if self.folder is not None or self.pretrained.endswith(_FILE_ENDINGS) or "/" in self.pretrained:
            return ""
        return self.pretrained or DEFAULT_TAG

    @property
    def config(self) -> Mapping[str, Any]:
        """open_clip's description of the network; raises RecipeError where there is none."""
        return _described(self)["model_cfg"]  # type: ignore[no-any-return]

    @property
    def dimension(self) -> int:
        """How many numbers an embedding has."""
        return int(self.config["embed_dim"])

    @property
    def quick_gelu(self) -> bool:
        """Whether the network uses OpenAI's approximation of GELU: a tag decides, else the configuration."""
        return bool(_tag(self).get("quick_gelu", False)) if self.tag else bool(self.config.get("quick_gelu", False))

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """Mean, deviation, interpolation, resize_mode and fill_color of the pictures it was trained on."""
        defaults = {"mean": _MEAN, "std": _STD, "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
        given = _tag(self) if self.tag else _described(self).get("preprocess_cfg", {})
        return {key: given[key] if given.get(key) is not None else value for key, value in defaults.items()}

    @property
    def framing(self) -> Framing:
        """How a picture becomes the square it sees."""
        size = self.config["vision_cfg"].get("image_size", 224)
        width, height = (size, size) if isinstance(size, int) else size
        if width != height:
            raise RecipeError(f"model {self.model}: sees pictures of {width} x {height}; only squares are supported")
        given = self.preprocessing
        return Framing(
            resize_px=width, crop_px=width, mode=given["resize_mode"], interpolation=given["interpolation"],
            fill=int(given["fill_color"]),
        )  # fmt: skip

    @property
    def weights(self) -> Path:
        """The file of weights, fetched where it has to be; raises RecipeError."""
        return _weights(self)

    @property
    def digest(self) -> str:
        """The sha256 over all that makes an embedding but precision and batch: weights, network, preprocessing."""
        parts = {"config": self.config, "quick_gelu": self.quick_gelu, "preprocessing": self.preprocessing}
        words = {path.name: weights_digest(path) for path in self._tokenizer_files}
        parts |= {"tokenizer": words} if words else {}
        return digest_of({**parts, "view": repr(self.framing.view), "weights": weights_digest(self.weights)})

    @property
    def _tokenizer_files(self) -> list[Path]:
        """Return what a folder brings to cut captions into tokens; other models use open_clip's own."""
        names = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*")
        return sorted(path for name in names for path in (self.folder.glob(name) if self.folder is not None else ()))


@cache
def _described(source: ClipSource) -> dict[str, Any]:
    folder = source.folder
    path = folder / CONFIG if folder is not None else _known_config(source.model)
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise RecipeError(f"model {source.model}: no {path.name} there ({error.strerror})") from error
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON ({error})") from error
    described = {"model_cfg": value} if folder is None else value
    config = described.get("model_cfg") if isinstance(described, dict) else None
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise RecipeError(f"{path}: describes no model of open_clip (model_cfg with embed_dim, vision_cfg, text_cfg)")
    return described


def _known_config(name: str) -> Path:
    """Find a model's description inside open_clip without importing it."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.origin:
        raise RecipeError(f"model {name}: the package open-clip-torch is not installed")
    known = Path(spec.origin).parent / "model_configs"
    path = known / f"{name}.json"
    if not path.is_file():
        near = sorted(found.stem for found in known.glob(f"{name[:5]}*.json"))[:8]
        raise RecipeError(f"model {name!r}: neither a folder nor a model of open_clip (such as {', '.join(near)})")
    return path


@cache
def _tag(source: ClipSource) -> dict[str, Any]:
    from tokenmill.filters.clip_import import open_clip

    found = open_clip().pretrained.get_pretrained_cfg(source.model, source.tag)
    if not found:
        known = open_clip().list_pretrained_tags_by_model(source.model)
        raise RecipeError(
            f"model {source.model}: {source.tag!r} is neither a file nor a tag; tags: {', '.join(known) or 'none'}"
        )
    return dict(found)


@cache
def _weights(source: ClipSource) -> Path:
    where = f"model {source.model}, pretrained"
    if source.tag:
        return _fetched(source)
    folder = source.folder
    if source.pretrained:
        inside = folder / source.pretrained if folder is not None else None
        return inside if inside is not None and inside.is_file() else weights_path(source.pretrained, where)
    assert folder is not None
    if source.model.startswith(HUB):
        return _hub_weights(source.model)
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise RecipeError(f"model {source.model}: no weights beside {CONFIG}; looked for {', '.join(_WEIGHTS)}")
    return found


def _fetched(source: ClipSource) -> Path:
    from tokenmill.filters.clip_import import open_clip

    try:
        return Path(open_clip().download_pretrained(_tag(source)))
    except Exception as error:  # urllib's, the hub's and open_clip's own errors have no common root
        why = " ".join(str(error).split())[:200]
        raise RecipeError(f"model {source.model}: cannot fetch the weights of {source.tag!r}: {why}") from error


def _hub_weights(model: str) -> Path:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    names = _WEIGHTS[:3]
    for name in names:
        try:
            return hub_file(model.removeprefix(HUB), name, f"model {model}")
        except RecipeError as error:
            why = error.__cause__
            if not isinstance(why, EntryNotFoundError) or isinstance(why, LocalEntryNotFoundError):
                raise  # no connection: another name would not help
    raise RecipeError(f"model {model}: the repository has none of {', '.join(names)}")
