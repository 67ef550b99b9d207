"""How much text the detector finds by the height of its letters, and what it costs, for caps of the longest side.

    python benchmarks/text_detection.py [--pictures 12] [--json]

Lines of text are drawn over crops of photographs of a megapixel, which are stored as JPEG and go the way every picture
goes: decoded at the view's scale, shrunk to the cap, detected. A line counts as found when the boxes cover half of it.
Heights are those of the letters in the whole picture: a cap of 480 sees a third of them in a picture of 1,400 pixels.
CPU-milliseconds a picture, decoding included. `false_px` is the share of untouched photographs that boxes cover.

Below `pages`, whole pages of text in the size of scans (A4 at 300 dots an inch, 12 megapixels): what share of them
boxes cover, by the size of the letters and by how many times a picture may be shrunk.
"""

from __future__ import annotations

import argparse
import json
import time
from io import BytesIO
from typing import Any

import numpy as np
from curate import cut
from PIL import Image, ImageDraw, ImageFont

from tokenmill.demo.photographs import photographs
from tokenmill.filters.picture import Picture
from tokenmill.filters.text_coverage import TextCoverage
from tokenmill.filters.text_detector import text_boxes
from tokenmill.pipelines.decode_image import open_image

CAPS = (320, 480, 640, 960)
HEIGHTS_PX = (12, 16, 20, 24, 32, 48)
PAGES = ((2480, 3508), (4000, 3000))
FONTS_PX = (30, 36, 42, 50)  # of A4 at 300 dots an inch: 7, 8.5, 10 and 12 points
SHRINKS = (None, 6, 5, 4, 3)
WORDS = "Fresh bread, open daily from seven until late, no. 42 "
Line = tuple[int, tuple[int, int, int, int]]  # height of the letters; left, top, right, bottom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.pictures)
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


def measure(number: int) -> dict[str, Any]:
    """Return recall by cap and height, milliseconds by cap, and the area of false boxes by cap."""
    random = np.random.default_rng(8)
    whole = [Image.open(photograph.path).convert("RGB") for photograph in photographs()]
    plain = [cut(whole[index % len(whole)], 1e6, random) for index in range(number)]
    written = [with_text(image, random) for image in plain]
    caps = {}
    for cap in CAPS:
        scorer = TextCoverage(longest_side_px=cap)
        scorer.score([picture_of(plain[0])])
        before = time.process_time()
        pages = [found_lines(scorer, image, lines) for image, lines in written]
        cpu_ms = 1000 * (time.process_time() - before) / number
        recall = {
            height: round(float(np.mean([hit for page in pages for h, hit in page if h == height])), 2)
            for height in HEIGHTS_PX
        }
        false = [scorer.score([picture_of(image)])["text_coverage"][0] for image in plain]
        caps[cap] = {"cpu_ms": round(cpu_ms, 1), "recall": recall, "false_px": round(float(np.mean(false)), 3)}
    return {"pictures": number, "caps": caps, "pages": pages_measured()}


def pages_measured() -> dict[str, Any]:
    """Return, by how far pictures may be shrunk, what is covered of pages and the milliseconds they cost."""
    pages = {(size, font_px): page(size, font_px) for size in PAGES for font_px in FONTS_PX}
    found: dict[str, Any] = {}
    for shrink in SHRINKS:
        scorer = TextCoverage(max_shrink=shrink)
        for (size, font_px), image in pages.items():
            before = time.process_time()
            scored = scorer.score([picture_of(image)])
            cpu_ms = 1000 * (time.process_time() - before)
            row = found.setdefault(f"{size[0]} x {size[1]}", {}).setdefault(str(shrink), {})
            row[font_px] = {"covered": round(scored["text_coverage"][0], 2), "cpu_ms": round(cpu_ms)}
    return found


def page(size: tuple[int, int], font_px: int) -> Image.Image:
    """Fill a page with lines of text of a size (capitals are 0.74 of it) on paper that is not white everywhere."""
    image = Image.new("RGB", size, (255, 250, 235))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(font_px)
    line = WORDS * (1 + int(size[0] / (20 * font_px)))
    for number, top in enumerate(range(size[1] // 12, size[1] * 11 // 12, round(font_px * 1.45))):
        words = line[number % 7 : number % 7 + int(size[0] * 0.84 / (font_px * 0.52))]
        draw.text((size[0] // 12, top), words, fill=(20, 20, 60), font=font)
    return image


def with_text(image: Image.Image, random: np.random.Generator) -> tuple[Image.Image, list[Line]]:
    """Draw a line of each height, dark on a light band or light on a dark one."""
    image, lines, top = image.copy(), [], 30
    draw = ImageDraw.Draw(image)
    for height in random.permutation(HEIGHTS_PX).tolist():
        font = ImageFont.load_default(round(height * 1.35))  # capitals are 0.74 of the size
        text = WORDS[: max(8, int(0.8 * image.width / (0.75 * height)))]
        left = int(random.integers(10, 60))
        box = draw.textbbox((left, top), text, font=font)
        dark = bool(random.integers(2))
        draw.rectangle((box[0] - 8, box[1] - 6, box[2] + 8, box[3] + 6), fill=(30, 30, 40) if dark else (235, 232, 220))
        draw.text((left, top), text, fill=(240, 240, 240) if dark else (20, 20, 20), font=font)
        lines.append((height, tuple(map(int, box))))
        top = int(box[3]) + 50
    return image, lines


def picture_of(image: Image.Image) -> Picture:
    """Encode a picture and open it as the stage does."""
    data = BytesIO()
    image.save(data, "JPEG", quality=90)
    opened = open_image(data.getvalue(), max_pixels=10**8)
    return Picture(opened, *opened.size, data=data.getvalue())


def found_lines(scorer: TextCoverage, image: Image.Image, lines: list[Line]) -> list[tuple[int, bool]]:
    """Return for every line its height and whether boxes cover half of it."""
    import cv2

    (small,) = scorer.prepare([picture_of(image)])
    boxes, shape = text_boxes(small)
    covered = np.zeros(shape, np.uint8)
    for box in boxes:
        cv2.fillPoly(covered, [box], 1)
    scale = shape[1] / image.width
    hits = []
    for height, sides in lines:
        left, top, right, bottom = (round(side * scale) for side in sides)
        hits.append((height, bool(covered[top:bottom, left:right].mean() >= 0.5)))
    return hits


if __name__ == "__main__":
    main()
