"""What drawing holds: always in the grammar and decodable, greedy ids are transformers', a batch changes nothing."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.generate_peers import transformers_way
from benchmarks.generate_peers.transformers_way import Grid
from numpy.typing import NDArray
from tests.drawn_models import untrained

from tokenmill.errors import RecipeError, SampleError
from tokenmill.generate.extending import Clip, extend_clip
from tokenmill.generate.model import ExportedModel
from tokenmill.generate.pictures import PictureCodes, decode_ids, parse_pictures
from tokenmill.generate.sample import Drawing, draw_documents
from tokenmill.generate.sampling import Sampling
from tokenmill.tokenize.documents import Segment, TextSegment, VisionSegment, assemble
from tokenmill.tokenize.vision import VisionTokenizer, load_vision_tokenizer
from tokenmill.tokenize.vocabulary import byte_vocabulary

V = byte_vocabulary(32)
PROMPTS = ("a red circle", "two", "eine sehr lange Beschreibung eines Bildes", "blue")
PICTURES = [(1, 1), (1, 2), (2, 1), (5, 2), (2, 3), (3, 2), (4, 4), (1, 7)]
CLIPS = [(2, 1, 1), (3, 2, 1), (2, 1, 2), (2, 2, 3)]
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> ExportedModel:
    return untrained(V)


@pytest.fixture(scope="module")
def precise() -> ExportedModel:
    opened = untrained(V, seed=3)
    opened.model.double()
    return opened


def clip(prompt: str, frames: int, height: int, width: int, **more: object) -> Drawing:
    """Say a clip of four frames a code at 8 fps."""
    return Drawing(prompt=prompt, frames=frames, height=height, width=width, fps=8.0, seconds=frames / 2, **more)  # type: ignore[arg-type]


def mixed(count: int) -> list[Drawing]:
    """Give pictures and clips of all grids in turn, prompts of different length, some with a negative prompt."""
    found = []
    for number in range(count):
        said = {"prompt": PROMPTS[number % 4], "negative": "blurry" if number % 3 == 0 else "", "seed": number}
        grid = (*PICTURES, *CLIPS)[number % 12]
        if len(grid) == 2:
            found.append(Drawing(height=grid[0], width=grid[1], **said))  # type: ignore[arg-type]
        else:
            found.append(replace(clip("", *grid), **said))  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="module")
def scenes() -> VisionTokenizer:
    return load_vision_tokenizer("scenes")


def test_thousand_pictures_and_clips_of_an_untrained_model_are_in_the_grammar_and_decode(
    scenes: VisionTokenizer,
) -> None:
    opened = untrained(byte_vocabulary(scenes.codebook_size))
    drawings = mixed(1_000)
    guided = Sampling(temperature=1.5, top_k=0, guidance=3.0)
    documents = draw_documents(opened, drawings[:500], guided, batch_size=50)
    unguided = Sampling(temperature=1.5, top_k=100, top_p=0.9, guidance=1.0)
    documents += draw_documents(opened, drawings[500:], unguided, batch_size=50)
    alike: dict[tuple[int, ...], list[PictureCodes]] = defaultdict(list)
    for drawing, ids in zip(drawings, documents, strict=True):
        assert (ids[0], ids[-2], ids[-1]) == (opened.vocabulary.bos, opened.vocabulary.eov, opened.vocabulary.eos)
        (drawn,) = parse_pictures(ids, opened.vocabulary)
        assert drawn.codes_thw.shape == (drawing.frames, drawing.height, drawing.width)
        assert (drawn.fps, drawn.seconds) == (drawing.fps, drawing.seconds)
        alike[drawn.codes_thw.shape].append(drawn)
    assert sum(map(len, alike.values())) == 1_000
    for (t, h, w), pictures in alike.items():
        codes = np.stack([picture.codes_thw for picture in pictures])
        assert len(np.unique(codes)) > 20
        pixels = scenes.decode_images(codes[:, 0]) if pictures[0].fps is None else scenes.decode_video(codes)
        assert pixels.dtype == np.uint8
        assert pixels.shape == ((len(codes), *([4 * t] if pictures[0].fps else []), 8 * h, 8 * w, 3))
    assert len(decode_ids(documents[-1], opened.vocabulary, scenes)) in (1, 8, 12)


def by_transformers(
    opened: ExportedModel, drawings: Sequence[Drawing], prompts: list[NDArray[np.int32]], against: str | None
) -> list[NDArray[np.int32]]:
    """Draw greedily as the released code does; `against` None: without guidance."""
    first = drawings[0]
    grid = Grid(height=first.height, width=first.width, frames=first.frames)
    unconditional = [opening(one, against) for one in drawings] if against is not None else []
    guidance = 3.0 if against is not None else 1.0
    return transformers_way.draw(opened.model, V, grid, prompts, unconditional, guidance=guidance)


def opening(drawing: Drawing, text: str) -> NDArray[np.int32]:
    """Give `BOS text SOV meta SOT` of a document made by hand."""
    codes = np.zeros(drawing.frames * drawing.height * drawing.width, np.uint32)
    text_ids = np.array(V.text.encode(text), np.uint32)
    picture = VisionSegment(drawing.frames, drawing.height, drawing.width, 0, drawing.fps, drawing.seconds)
    segments: list[Segment] = [TextSegment(0, len(text_ids), "caption"), picture] if text else [picture]
    ids = assemble(segments, text_ids, codes, "generation" if text else "unconditional", V).ids
    return ids[: np.flatnonzero(ids == V.sot)[0] + 1]


@pytest.mark.parametrize(
    ("grid", "guidance", "negative"),
    [((1, 3, 4), 3.0, ""), ((1, 3, 4), 3.0, "blurry"), ((1, 5, 3), 1.0, ""), ((3, 2, 3), 3.0, ""),
     ((2, 3, 3), 3.0, "dark and blurry"), ((1, 2, 1), 3.0, ""), ((2, 1, 2), 1.0, "")],
)  # fmt: skip
def test_greedy_ids_equal_those_of_transformers_with_its_prefix_function_and_guidance(
    precise: ExportedModel, grid: tuple[int, int, int], guidance: float, negative: str
) -> None:
    frames, height, width = grid
    drawings = [
        clip(text, frames, height, width, negative=negative)
        if frames > 1
        else Drawing(prompt=text, height=height, width=width, negative=negative)
        for text in PROMPTS
    ]
    ours = draw_documents(precise, drawings, replace(GREEDY, guidance=guidance))
    prompts = [opening(one, one.prompt) for one in drawings]
    against = negative if guidance != 1 else None
    together = by_transformers(precise, drawings, prompts, against)
    alone = [by_transformers(precise, [one], [ids], against)[0] for one, ids in zip(drawings, prompts, strict=True)]
    assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]
    assert len({tuple(ids[-30:]) for ids in ours}) > 1 or height * width * frames < 5


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sample_is_the_same_in_any_batch_order_and_batch_size(model: ExportedModel, guidance: float) -> None:
    sampling = Sampling(temperature=1.5, guidance=guidance, top_k=20, top_p=0.95)
    drawings = mixed(48)
    alone = [draw_documents(model, [one], sampling)[0].tolist() for one in drawings]
    for batch_size, order in ((3, range(48)), (48, random.Random(0).sample(range(48), 48))):
        found = draw_documents(model, [drawings[number] for number in order], sampling, batch_size=batch_size)
        assert [ids.tolist() for ids in found] == [alone[number] for number in order]


def test_samples_of_one_prompt_differ_by_their_seeds_alone(model: ExportedModel) -> None:
    asked = [Drawing(prompt="x", height=4, width=4, seed=seed) for seed in (1, 2, 3, 1)]
    first, *others, again = (ids.tolist() for ids in draw_documents(model, asked, Sampling()))
    assert first == again
    assert first not in others
    assert others[0] != others[1]


def test_empty_prompt_draws_the_unconditional_picture_whatever_the_guidance(
    model: ExportedModel, caplog: pytest.LogCaptureFixture
) -> None:
    drawing = Drawing(prompt="", height=3, width=3)
    guided, unguided = (draw_documents(model, [drawing], Sampling(guidance=one))[0] for one in (7.0, 1.0))
    assert guided.tolist() == unguided.tolist()
    assert "guidance 7 changes nothing for 1 of 1 drawings" in caplog.text


def test_batches_are_told_when_they_are_done(model: ExportedModel) -> None:
    told: dict[int, list[int]] = {}

    def done(numbers: Sequence[int], documents: list[NDArray[np.int32]]) -> None:
        told.update(zip(numbers, [ids.tolist() for ids in documents], strict=True))

    found = draw_documents(model, mixed(13), Sampling(guidance=1), batch_size=2, on_batch=done)
    assert [told[number] for number in range(13)] == [ids.tolist() for ids in found]


def extended(opened: ExportedModel, codes: list[NDArray[np.uint32]], **asked: int) -> list[list[int]]:
    clips = [Clip(codes=one, fps=8.0, prompt=PROMPTS[number], negative="blurry") for number, one in enumerate(codes)]
    found = extend_clip(opened, clips, replace(GREEDY, guidance=3.0), frames_per_code=4, **asked)
    for one, given in zip(found, codes, strict=True):
        assert one.codes.shape == (asked["total"], *given.shape[1:])
        assert np.array_equal(one.codes[: len(given)], given)
        place = len(given)
        for window in one.windows:
            begun = window.drawing.begun
            assert begun is not None
            assert np.array_equal(begun, one.codes[place - len(begun) : place])
            (drawn,) = parse_pictures(window.ids, V)
            place += len(drawn.codes_thw) - len(begun)
            assert np.array_equal(drawn.codes_thw, one.codes[place - len(drawn.codes_thw) : place])
            assert drawn.seconds == len(drawn.codes_thw) / 2
        assert place == asked["total"]
    return [[len(parse_pictures(window.ids, V)[0].codes_thw) for window in one.windows] for one in found]


def codes_of(*shape: int) -> NDArray[np.uint32]:
    return np.random.default_rng(len(shape)).integers(0, V.codebook_size, shape, np.uint32)


def test_extension_is_what_transformers_makes_of_documents_with_those_frames(precise: ExportedModel) -> None:
    given = [codes_of(3, 2, 3), codes_of(2, 2, 3), codes_of(2, 1, 2)]
    lengths = extended(precise, given, context=2, new=2, total=7)
    assert lengths == [[4, 4], [4, 4, 4], [4, 4, 4]]
    clips = [Clip(codes=one, fps=8.0, prompt="a red circle") for one in given]
    found = extend_clip(precise, clips, replace(GREEDY, guidance=3.0), context=2, new=2, total=7, frames_per_code=4)
    for one in found:
        for window in one.windows:
            drawing = window.drawing
            rows = np.concatenate([drawing.begun, codes_of(*drawing.begun.shape)])[: drawing.frames]  # type: ignore[union-attr]
            picture = VisionSegment(len(rows), drawing.height, drawing.width, 0, 8.0, 1.0)
            frames = assemble([picture], np.zeros(0, np.uint32), rows.reshape(-1), "unconditional", V).ids
            begun = frames[np.flatnonzero(frames == V.sot)[0] + 1 :]
            begun = begun[: np.flatnonzero(begun == V.eof)[drawing.num_begun - 1] + 1]
            prompts, against = (np.concatenate([opening(drawing, text), begun]) for text in (drawing.prompt, ""))
            grid = Grid(height=drawing.height, width=drawing.width, frames=drawing.frames)
            (theirs,) = transformers_way.draw(precise.model, V, grid, [prompts], [against], guidance=3.0)
            assert window.ids.tolist() == theirs.tolist()


def test_last_window_reads_more_where_fewer_frames_are_wanted(model: ExportedModel) -> None:
    assert extended(model, [codes_of(4, 1, 1)], context=2, new=3, total=9) == [[5, 5]]
    assert extended(model, [codes_of(2, 1, 1)], context=2, new=3, total=3) == [[3]]
    assert extended(model, [codes_of(6, 1, 1)], context=1, new=3, total=7) == [[4]]


def test_clip_of_an_extension_hangs_on_itself_alone_and_its_windows_do_not_repeat(model: ExportedModel) -> None:
    asked = {"context": 1, "new": 2, "total": 9, "frames_per_code": 4}
    clips = [Clip(codes=codes_of(1 + n % 3, 2, 2), fps=8.0, prompt=PROMPTS[n % 4], seed=n) for n in range(6)]
    together = extend_clip(model, clips, Sampling(), **asked)
    for clip_, one in zip(clips, together, strict=True):
        (alone,) = extend_clip(model, [clip_], Sampling(), **asked)
        assert np.array_equal(one.codes, alone.codes)
        assert len({window.drawing.seed for window in one.windows}) == len(one.windows) >= 3
    still = Clip(codes=np.zeros((1, 2, 2), np.uint32), fps=8.0)
    (one,) = extend_clip(model, [still], Sampling(temperature=1.5, top_k=0), **asked)
    assert len({one.codes[at : at + 2].tobytes() for at in (1, 3, 5, 7)}) == 4


@pytest.mark.parametrize(
    ("shape", "asked", "told"),
    [
        ((1, 2, 2), {"context": 2}, "clip_too_short: clip 0 has 1 latent frames; 2 of them are wanted as context"),
        ((8, 2, 2), {}, "clip_too_long: clip 0 has 8 latent frames already; 8 are wanted"),
        ((2, 2, 2), {"new": 0}, "must be 1 and more"),
        ((2, 9, 9), {"total": 99, "new": 40}, "need 3750 ids .* context holds 512"),
    ],
)
def test_extension_that_cannot_be_is_refused(
    model: ExportedModel, shape: tuple[int, ...], asked: dict[str, int], told: str
) -> None:
    clips = [Clip(codes=np.zeros(shape, np.uint32), fps=8.0)]
    with pytest.raises((SampleError, RecipeError), match=told):
        extend_clip(model, clips, Sampling(), **{"context": 1, "new": 2, "total": 8, "frames_per_code": 4} | asked)


def test_begun_code_that_is_never_drawn_is_refused_by_name(model: ExportedModel) -> None:
    drawings = [clip("", 2, 1, 1), clip("", 2, 1, 1, begun=np.full((1, 1, 1), 9, np.uint32))]
    assert len(draw_documents(model, drawings, Sampling())) == 2
    with pytest.raises(SampleError, match="drawing 1: begun frames have code 9; the last one is 7"):
        draw_documents(model, drawings, Sampling(), num_codes=8)


def test_drawing_that_the_context_does_not_hold_is_refused_before_anything_is_drawn(model: ExportedModel) -> None:
    drawings = [Drawing(prompt="a", height=1, width=1), Drawing(prompt="ab", height=30, width=30)]

    def never(numbers: Sequence[int], documents: list[NDArray[np.int32]]) -> None:
        raise AssertionError

    with pytest.raises(RecipeError, match=r"drawing 1: .*need 943 ids \(10 and 933\); the model's context holds 512"):
        draw_documents(model, drawings, Sampling(), on_batch=never)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"height": 0}, "holds nothing"),
        ({"frames": 2}, "needs both fps and seconds"),
        ({"fps": 8.0}, "needs both fps and seconds"),
        ({"seed": -1}, "seed is -1"),
        ({"begun": np.zeros((1, 1, 1), np.uint32)}, "begun frames of shape"),
    ],
)
def test_drawing_that_makes_no_sense_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Drawing(**{"prompt": "a", "height": 2, "width": 2} | wrong)  # type: ignore[arg-type]
