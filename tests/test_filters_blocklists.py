"""Block lists of pictures and texts, and the quality of captions."""

from __future__ import annotations

import hashlib
import signal
from io import BytesIO

import numpy as np
import polars as pl
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests import tiny

from tokenmill.errors import RecipeError, RunError
from tokenmill.filters.caption_quality import caption_columns, kind_of
from tokenmill.filters.hash_lists import read_hash_lists
from tokenmill.filters.picture import Picture
from tokenmill.filters.scorer import build_scorer, reads_caption
from tokenmill.filters.text_blocklist import plain_text
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.decode_image import decode_image
from tokenmill.pipelines.decoding import DecodeLimits
from tokenmill.pipelines.jobs import Job, Target
from tokenmill.pipelines.score import score_work
from tokenmill.pipelines.scoring_pass import ScorerSpec, scoring_pass
from tokenmill.recipe import check_recipe


@pytest.fixture(scope="module")
def photographs():
    return [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]


def encoded(image, quality=90, **options):
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def picture(data):
    pixels = decode_image(data, max_pixels=10**8)
    return Picture.of(pixels, data=data, sha256=hashlib.sha256(data).hexdigest())


def phash(sample):
    return build_scorer("perceptual_hash").score([sample])["phash"][0]


def listed(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def table(scorer, batch):
    return pl.DataFrame(dict(scorer.score(batch)), schema=dict(scorer.columns), strict=True)


def test_blocklist_knows_files_by_their_digest_and_copies_by_their_look(tmp_path, photographs):
    files = [encoded(image) for image in photographs]
    pictures = [picture(data) for data in files]
    exact = listed(
        tmp_path / "exact", ["# from the office", hashlib.sha256(files[1]).hexdigest().upper(), "", "00" * 32]
    )
    near = listed(tmp_path / "near", [f"{phash(pictures[2]):016x}"])
    scorer = build_scorer("blocklist", {"sha256": exact, "phash": [near]})
    copy = picture(encoded(photographs[2], quality=30))
    found = table(scorer, [*pictures, copy])
    assert found["is_blocklisted"].to_list() == [False, True, True, False, True]
    distances = found["blocklist_distance_bits"].to_list()
    assert distances[:4] == [None, None, 0, None] and distances[4] == (phash(copy) ^ phash(pictures[2])).bit_count()


def test_blocklist_distance_is_the_nearest_and_null_beyond_the_greatest(tmp_path, photographs):
    sample = picture(encoded(photographs[0]))
    value = phash(sample)
    near = listed(tmp_path / "near", [f"{value ^ bits:016x}" for bits in (0b111111111, 0b10101, (1 << 63) | 0b1111111)])
    for most, distance in ((2, None), (3, 3), (32, 3)):
        found = table(build_scorer("blocklist", {"phash": near, "max_distance": most}), [sample])
        assert found.row(0) == (distance is not None, distance)


def test_blocklist_of_flat_picture_looks_at_its_digest_alone(tmp_path):
    data = encoded(np.full((64, 64, 3), 255, np.uint8))
    lists = {
        "sha256": listed(tmp_path / "a", [hashlib.sha256(data).hexdigest()]),
        "phash": listed(tmp_path / "b", ["0" * 16]),
    }
    assert table(build_scorer("blocklist", lists), [picture(data)]).row(0) == (True, None)


def test_blocklist_fingerprint_covers_what_lists_hold(tmp_path):
    first = build_scorer("blocklist", {"sha256": listed(tmp_path / "a", ["ab" * 32, "cd" * 32])}).fingerprint
    same = [listed(tmp_path / "b", ["# moved", "CD" * 32]), listed(tmp_path / "c", ["ab" * 32, "ab" * 32])]
    assert build_scorer("blocklist", {"sha256": same}).fingerprint == first
    assert build_scorer("blocklist", {"sha256": same[0]}).fingerprint != first
    assert build_scorer("blocklist", {"sha256": same, "max_distance": 5}).fingerprint != first


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=20), st.binary(min_size=32, max_size=32))
def test_hash_list_holds_exactly_what_is_on_it(tmp_path_factory, hashes, other):
    path = tmp_path_factory.mktemp("list") / "list.txt"
    found = read_hash_lists([listed(path, [value.hex() for value in hashes])], 32, "here")
    assert all(found.holds(value) for value in hashes)
    assert found.holds(other) == (other in hashes)


@pytest.mark.parametrize("name", ["blocklist", "text_blocklist"])
def test_blocklist_without_a_list_is_refused(name):
    with pytest.raises(RecipeError, match="name a list"):
        build_scorer(name)


def test_list_that_is_missing_or_malformed_is_named_with_its_line(tmp_path):
    short = listed(tmp_path / "short.txt", ["# comment", "ab" * 31])
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    blank = listed(tmp_path / "blank.txt", ["good", "…"])
    for name, settings, says in [
        ("blocklist", {"sha256": short}, "scorer 'blocklist': sha256: .*short.txt, line 2: a hash has 64 hexadecimal"),
        ("blocklist", {"phash": short}, "phash: .*line 2: a hash has 16 hexadecimal digits"),
        ("blocklist", {"phash": str(tmp_path / "none")}, "phash: cannot read .*none: No such file"),
        ("text_blocklist", {"words": str(binary)}, r"words: .*binary.txt is not a text in UTF-8 \(byte 0\)"),
        ("text_blocklist", {"words": blank}, "words: .*blank.txt, line 2: no word in '…'"),
        ("text_blocklist", {"plain_sha256": short}, "plain_sha256: .*line 2"),
    ]:
        with pytest.raises(RecipeError, match=says):
            build_scorer(name, settings)


def test_text_blocklist_knows_texts_as_they_are_and_however_spelled(tmp_path):
    secret, poem = "Top Secret: do not copy!", "A rose is a rose."
    lists = {
        "text_sha256": listed(tmp_path / "a", [hashlib.sha256(secret.encode()).hexdigest()]),
        "plain_sha256": listed(tmp_path / "b", [hashlib.sha256(plain_text(poem).encode()).hexdigest()]),
    }
    batch = [secret, secret.lower(), poem, "  a ROSE — is a rose", "another", ""]
    found = table(build_scorer("text_blocklist", lists), batch)
    assert found["is_blocklisted"].to_list() == [True, False, True, True, False, False]
    assert found["blocked_words"].to_list() == [0] * 6


def test_text_blocklist_counts_words_and_phrases_of_any_script(tmp_path):
    words = listed(tmp_path / "words", ["# list", "damn", "Foo-Bar", "foo bar baz", "傻瓜", "नमस्ते"])
    scorer = build_scorer("text_blocklist", {"words": words})
    texts = ["Damn! DAMN, damned.", "foo bar baz and foo  bar", "你这个傻瓜,傻 瓜", "नमस्ते दुनिया", "fine"]
    assert table(scorer, texts)["blocked_words"].to_list() == [2, 2, 2, 1, 0]


@given(st.text())
def test_text_blocklist_and_captions_never_raise(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "words.txt"
    path.write_text("a\nb c\n")
    assert table(build_scorer("text_blocklist", {"words": str(path)}), [text]).height == 1
    assert pl.DataFrame(dict(caption_columns([text])), schema=dict(build_scorer("caption_quality").columns)).height == 1


@pytest.mark.parametrize(
    ("kind", "captions"),
    [
        (
            "file_name",
            [
                "IMG_1234.jpg",
                "DSC00012",
                "photo (3).jpeg",
                "20130812_153012",
                "P1010032",
                "photo_3",
                "img-2 (1",
                "a" * 32,
                "1234567",
            ],
        ),
        ("url", ["https://example.org/a.png", "www.example.com", "example.com/pictures/3"]),
        ("date", ["2024-01-05", "January 5, 2024", "12 March 2011", "05.01.2024 12:30", "2012", "2024年1月5日"]),
        ("boilerplate", ["untitled", "Stock Photo", "image may contain:", "無題", "[No Title]"]),
        ("numbers", ["5 + 3", "…", "12 34"]),
        ("empty", ["", " \n"]),
        (
            "text",
            [
                "A dog on a beach",
                "Paris",
                "May 2012 wedding",
                "两只猫在沙发上",
                "Mrs. Robinson at home",
                "photo by Jan",
                "photo 3 dogs",
                "U.S. flag",
            ],
        ),
    ],
)
def test_caption_kind_tells_words_from_what_is_none(kind, captions):
    assert {caption: kind_of(caption) for caption in captions} == dict.fromkeys(captions, kind)


@pytest.fixture
def most_cpu_time():
    """End what computes for more than ten seconds, however busy the machine is."""

    def ended(*_):
        raise TimeoutError("ten seconds of computing")

    before = signal.signal(signal.SIGPROF, ended)
    signal.setitimer(signal.ITIMER_PROF, 10)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize(
    "caption",
    ["IMG" + "_" * 8000 + "!", "1" * 8000 + "!", "1_" * 4000 + "!", "a" * 8000, "a." * 4000 + "!",
     "may" + " " * 8000 + "!", "DSC" + "-" * 8000 + "!", "IMG" + "_" * 290 + "!", "1" * 290 + "!",
     "may" + " 1" * 140 + "!"],
    ids=lambda caption: caption[:6],
)  # fmt: skip
def test_caption_made_to_be_slow_is_looked_at_in_no_time(caption, most_cpu_time):
    for _ in range(20):
        assert kind_of(caption) != "file_name"


def test_caption_quality_measures_length_language_and_repetition(photographs):
    scorer = build_scorer("caption_quality")
    assert reads_caption(scorer)
    captions = ["a dog \x07 a dog\nby the sea", None, "Ein brauner Hund läuft über die Wiese", "IMG_1234.jpg"]
    found = table(scorer, [Picture.of(photographs[0], caption=caption) for caption in captions])
    assert found.row(0, named=True) == {
        "caption_chars": 24,
        "caption_words": 8,
        "caption_kind": "text",
        "caption_language": "en",
        "caption_language_confidence": pytest.approx(0.6, abs=0.2),
        "caption_repetition": 0.25,
        "caption_letter_ratio": pytest.approx(16 / 17),
        "caption_control_chars": 1,
    }
    assert found.row(1) == (None,) * 8
    assert found["caption_language"].to_list()[2:] == ["de", None]
    assert found["caption_kind"][3] == "file_name"


def test_list_that_moved_scores_nothing_again_and_one_that_changed_does(tmp_path):
    def named(path):
        scoring = scoring_pass("image", [ScorerSpec(name="blocklist", settings={"sha256": str(path)})])
        return scoring.config(scoring.specs[0], DecodeLimits()).digest

    first, moved, changed = (tmp_path / name for name in ("first", "moved", "changed"))
    first.write_text("ab" * 32 + "\n")
    moved.write_text("ab" * 32 + "\n")
    changed.write_text("cd" * 32 + "\n")
    assert named(first) == named(moved) != named(changed)


def test_worker_whose_list_is_not_the_one_the_run_was_planned_with_scores_nothing(tmp_path):
    tiny.write_data(tmp_path / "data")
    (tmp_path / "list").write_text("ab" * 32 + "\n")
    scorers = {"blocklist": {"sha256": str(tmp_path / "list")}}
    changes = {"filter.image": {"scorers": scorers}}
    recipe = tiny.recipe(tmp_path / "data", str(tmp_path / "root"), changes, sources=["photos"])
    chain = Chain(recipe=check_recipe(recipe, "tiny"), options=ChainOptions(quiet=True))
    work = score_work(chain.store, chain.passes["image"], chain.pieces["photos"], chain.limits, {})
    (tmp_path / "list").write_text("cd" * 32 + "\n")
    worker = work.make_worker()
    with pytest.raises(RunError, match=r"blocklist.*not those the run was planned with"):
        worker(Job(unit=work.units[0], targets=(Target(folder=work.folders[0]),)))
    assert not list(work.folders[0].store.names(work.folders[0].path))
    worker.close()
