"""Dense optical flow by RAFT, the network Emu3 measured motion with (EMU3.md §1), through torchvision.

Weights by path, from the hub, or by torchvision's name for them, whose file is fetched into torch's cache and read
without pickle. Pairs of one clip go through the network together, never those of two: a value depends on its clip
alone, on CPUs to the last bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from tokenmill.errors import RecipeError, RunError
from tokenmill.filters.clip import Clip, Frames
from tokenmill.filters.motion_figures import COLUMNS, STATIC_BELOW, Flow, Pace, figures_of, paces_of, step_of
from tokenmill.filters.scorer import Columns, fingerprint
from tokenmill.filters.shrink import shrink
from tokenmill.filters.steady import steady
from tokenmill.filters.weights_file import read_tensors, weights_digest, weights_path

Network = Literal["raft_small", "raft_large"]
_MULTIPLE_PX, _LEAST_PX = 8, 128  # what the network and its pyramid of correlations can take

_models: dict[tuple[str, str, str], Any] = {}
_lock = threading.Lock()


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFrames:
    """What the network sees of a clip: THWC RGB; and how far apart neighbours are."""

    frames: Frames
    paces: Sequence[Pace]


@dataclass(frozen=True, kw_only=True)
class RaftMotion:
    """Mean length of the flow over all pixels ÷ shorter edge, by RAFT.

    Args:
        flow: which of the two networks.
        weights: a path, `hf-hub:owner/repository/file`, or torchvision's name (`DEFAULT`, `C_T_SKHT_V2`).
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        short_side_px: frames are shrunk to this before; Emu3's is 256.
        num_updates: how often the flow is refined.
        pairs_at_once: of one clip; moves values by 1e-7.
        static_below: what moves less between two frames counts as still.
    """

    flow: Network
    weights: str = "DEFAULT"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    short_side_px: Annotated[int, Field(ge=64, le=2160)] = 256
    num_updates: Annotated[int, Field(ge=1, le=64)] = 12
    pairs_at_once: Annotated[int, Field(ge=1, le=64)] = 8
    static_below: Annotated[float, Field(ge=0)] = STATIC_BELOW

    name: ClassVar = "motion"
    version: ClassVar = 1
    takes: ClassVar[Literal["video"]] = "video"
    batch_size: ClassVar = 8  # clips, one by one all the same
    columns: ClassVar = COLUMNS
    places: ClassVar = ("weights", "device")

    @cached_property
    def fingerprint(self) -> str:
        """Hash the weights and the settings, but not where they lie or run."""
        names = ("flow", "short_side_px", "num_updates", "pairs_at_once", "static_below")
        settings = {name: getattr(self, name) for name in names}
        return fingerprint(self.name, self.version, settings, weights=weights_digest(self._path))

    @cached_property
    def _path(self) -> Path:
        return raft_weights(self.flow, self.weights)

    def score(self, batch: Sequence[Clip]) -> Columns:
        """Score clips; raises RunError for weights of another network."""
        return self.score_prepared(self.prepare(batch))

    def prepare(self, batch: Sequence[Clip]) -> Sequence[PreparedFrames]:
        """Shrink the frames of clips."""
        return [self._prepared(clip) for clip in batch]

    def score_prepared(self, batch: Sequence[PreparedFrames]) -> Columns:
        """Score what `prepare` returned."""
        scored = [self._scored(prepared) for prepared in batch]
        return {column: [figures[column] for figures in scored] for column in COLUMNS}

    def _prepared(self, clip: Clip) -> PreparedFrames:
        height, width = clip.frames.shape[1:3]
        side = min(height, width, self.short_side_px)
        longest = round(max(height, width) * side / min(height, width))
        frames = np.stack([shrink(frame, longest) for frame in clip.frames])
        return PreparedFrames(frames=frames, paces=paces_of(clip.seconds, clip.fps, min(frames.shape[1:3])))

    def _scored(self, prepared: PreparedFrames) -> Mapping[str, float | None]:
        flows = self._flows(prepared.frames)
        return figures_of([step_of(*pair) for pair in zip(flows, prepared.paces, strict=True)], self.static_below)

    def _flows(self, frames: Frames) -> Iterator[Flow]:
        for start in range(0, len(frames) - 1, self.pairs_at_once):
            yield from self._flows_at_once(frames[start : start + self.pairs_at_once + 1])

    def _flows_at_once(self, frames: Frames) -> NDArray[np.float32]:
        """Return the flow from each frame to the next, in px (pairs, H, W, 2)."""
        import torch

        device = torch.device(_device(self.device))
        with _lock, steady(device):
            model = _model(self.flow, self._path, device)
            levels_TCHW = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            padded, inside = _padded(levels_TCHW)
            flow_BCHW = model(padded[:-1], padded[1:], num_flow_updates=self.num_updates)[-1][inside]
            found: NDArray[np.float32] = flow_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        return found


def raft_weights(network: Network, weights: str) -> Path:
    """Return the file of weights; raises RecipeError where there is none."""
    where = "scorer 'motion': weights"
    if not weights.isidentifier():
        return weights_path(weights, where)
    from torchvision.models import get_model_weights

    known = get_model_weights(network)
    if weights not in known.__members__:
        raise RecipeError(f"{where}: torchvision knows no {weights!r} of {network}: {', '.join(known.__members__)}")
    return _fetched(known[weights].url)


def _fetched(url: str) -> Path:
    """Return torchvision's file from torch's cache, fetching it first where it is not there."""
    from torch import hub

    path = Path(hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = path.stem.rpartition("-")[2]  # the file's name carries the beginning of its sha256
        try:
            hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
        except (OSError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise RecipeError(f"scorer 'motion': weights: cannot fetch {url} to {path.parent}: {why}") from error
    return path


def _device(name: str) -> str:
    import torch

    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _model(network: Network, path: Path, device: Any) -> Any:
    """Return the one loaded network of this process for these weights and device."""
    from torchvision.models import get_model

    key = (network, weights_digest(path), str(device))
    if key not in _models:
        model = get_model(network, weights=None)
        try:
            model.load_state_dict(read_tensors(path), strict=True)
        except RuntimeError as error:
            why = "; ".join(line.strip() for line in str(error).splitlines()[1:3])[:300]
            raise RunError(f"{path}: not the weights of {network}: {why}") from error
        _models[key] = model.eval().requires_grad_(False).to(device)
    return _models[key]


def _padded(levels_TCHW: Any) -> tuple[Any, Any]:
    """Repeat the border until the network can take it; returns that and what cuts the picture out again."""
    from torch.nn.functional import pad

    height, width = levels_TCHW.shape[-2:]
    more_y, more_x = _missing(height), _missing(width)
    left, top = more_x // 2, more_y // 2
    padded = pad(levels_TCHW, (left, more_x - left, top, more_y - top), mode="replicate")
    return padded, (..., slice(top, top + height), slice(left, left + width))


def _missing(side_px: int) -> int:
    return max(_LEAST_PX, -(-side_px // _MULTIPLE_PX) * _MULTIPLE_PX) - side_px
