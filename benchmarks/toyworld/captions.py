"""What a scene or clip shows, in several wordings, each true, in a vocabulary of some fifty words.

A wording is a frame ("a picture of … on a white background") around a body ("a red circle left of a blue square").
Bodies tell more or less: those with shapes alone teach the prompts of GenEval's kinds that name shapes alone. Which
body stands in which frame turns with the seed, so that all meet. The trade-off: five to eight wordings a picture (the
captioner `metadata` takes eight), of which one in seven leaves colours open.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.toyworld.world import NUMBERS, OPPOSITE, Motion, Wanted
from tokenmill.demo.wording import place
from tokenmill.demo.world import Scene, relation

FRAMES = (
    "{body} on a {ground} background",
    "a picture of {body}",
    "there {is_are} {body}, the background is {ground}",
    "{ground} background with {body}",
    "a picture of {body} on a {ground} background",
    "{body}",
)
BARE_FRAMES = ("a picture of {body}", "{body}")  # those that leave the background open
CLIP_FRAMES = (
    "{body} on a {ground} background",
    "a video in which {body}",
    "on a {ground} background, {body}",
    "{ground} background, {body}",
    "a video in which {body} on a {ground} background",
    "{body}",
)


def captions(made: Scene) -> tuple[str, ...]:
    """Return five to eight captions true of a picture, always the same ones in the same order, the fullest first."""
    verb = "are" if made.kind == "group" else "is"
    return _framed(_bodies(made), FRAMES, made.seed, made.background, verb)


def clip_captions(made: Motion) -> tuple[str, ...]:
    """Return five or six captions true of a clip, always the same ones in the same order."""
    return _framed(_moving(made), CLIP_FRAMES, made.seed, made.background, "is")


def wish(wanted: Sequence[Wanted], related: str | None) -> str:
    """Say what a prompt wants: a body as captions have it, of one or two things."""
    names = [name(one.shape, one.colour, one.count) for one in wanted]
    return f" {related or 'and'} ".join(names)


def framed(body: str, frame: str, ground: str | None, *, plural: bool = False) -> str:
    """Put a body into a frame."""
    return frame.format(body=body, ground=ground, is_are="are" if plural else "is")


def name(shape: str, colour: str | None, count: int = 1, size: str = "") -> str:
    """Name a thing or a number of equal ones: "a red circle", "three squares"."""
    words = [size, colour or "", f"{shape}s" if count > 1 else shape]
    return " ".join(word for word in ["a" if count == 1 else NUMBERS[count], *words] if word)


def _framed(bodies: Sequence[str], frames: Sequence[str], seed: int, ground: str, verb: str) -> tuple[str, ...]:
    texts = [
        frames[(seed + number) % len(frames)].format(body=body, ground=ground, is_are=verb)
        for number, body in enumerate(bodies)
    ]
    return tuple(dict.fromkeys(texts))


def _bodies(made: Scene) -> tuple[str, ...]:
    first, *others = made.objects
    full = name(first.shape, first.colour)
    if made.kind == "single":
        sized, where = name(first.shape, first.colour, size=first.size), f" in the {place(first)}"
        return sized + where, full, sized, full, full + where, name(first.shape, None), full
    if made.kind == "group":
        count = len(made.objects)
        several = name(first.shape, first.colour, count)
        return several, several, name(first.shape, None, count), several, several, several
    return _related(made, name(others[0].shape, others[0].colour))


def _related(made: Scene, b: str) -> tuple[str, ...]:
    """Word a pair by its relation from both sides, and without it; by shapes alone where they tell the two apart."""
    first, second = made.objects
    where = relation(first, second)
    if where is None:  # a scene has plain relations alone
        raise ValueError(f"scene {made.seed}: neither beside nor above each other")
    back, a = OPPOSITE[where], name(first.shape, first.colour)
    related = (f"{a} {where} {b}", f"{b} {back} {a}", f"{a} and {b}", f"{b} and {a}")
    if first.shape == second.shape:
        return (*related, related[0], related[1])
    p, q = name(first.shape, None), name(second.shape, None)
    bare = (f"{p} {where} {q}", f"{q} {back} {p}", (f"{p} and {q}", f"{q} and {p}")[made.seed // len(FRAMES) % 2])
    return (*related, *bare, related[made.seed // len(FRAMES) % 2])


def _moving(made: Motion) -> tuple[str, ...]:
    first, *others = made.objects
    ends: tuple[str, ...]
    it, way = name(first.shape, first.colour), f" {made.way}" if made.way else ""
    if made.kind == "bouncing":
        ends = (
            f" moves{way} and bounces",
            " bounces",
            f" moves{way} and bounces off the edges",
            f" moves{way} and bounces",
        )
    elif made.kind == "occluded":
        ends = (
            f" moves{way} behind a brown bar",
            f" moves{way} behind a bar",
            f" moves{way} and passes behind a bar",
            f" moves{way} behind a brown bar",
        )
    else:
        rest = "".join(f", {name(other.shape, other.colour)} stays" for other in others)
        ends = (f" moves{way}{rest}", f" moves{way}") * 2
    return tuple(it + end for end in (*ends, ends[0], ends[1]))
