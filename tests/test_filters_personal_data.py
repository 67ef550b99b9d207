"""Personal data: what is found and what is not, and the mask, down to the ids in the archive."""

from __future__ import annotations

import io
import itertools
import json
import tarfile

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny

from tokenmill.demo.text_lines import english
from tokenmill.errors import RecipeError
from tokenmill.filters.personal_data import COLUMNS
from tokenmill.filters.personal_mask import PersonalMask
from tokenmill.filters.personal_patterns import KINDS, find
from tokenmill.filters.scorer import build_scorer
from tokenmill.pipelines.chain import Chain, ChainOptions
from tokenmill.pipelines.checks import check_chain
from tokenmill.recipe import check_recipe
from tokenmill.tokenize.vocabulary import build_vocabulary

# kind → texts that hold one (all made up, or published as examples of their kind), in many surroundings
HOLD = {
    "email": [
        "jane.doe+x@example.co.uk", "o'neil@x.org", "müller@straße.de", "用户@例子.广告", "a_b-c@mail.example.museum",
    ],
    "phone": [
        "+49 30 901820", "(212) 736-5000", "212-736-5000", "+1-212-736-5000", "+442079460958",
        "+86 10 6552 9988",
    ],
    "ip": ["8.8.8.8", "93.184.216.34", "2001:4860:4860::8888", "2a00:1450:4001:81b:0:0:0:200e"],
    "iban": [
        "DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NO93 8601 1117 947", "FR1420041010050500013M02606",
    ],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "6011000990139424"],
    "credentials": ["https://bob:s3cret@host.example/x", "postgres://app:hunter2@10.0.0.1:5432/db"],
    "secret": [
        "AKIAIOSFODNN7EXAMPLE", "ghp_0123456789abcdefghijklmnopqrstuvwxyz", "xoxb-123456789012-abcdefGHIJ",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nMIIEow+/=\n-----END RSA PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    ],
}  # fmt: skip
HOLD_NOTHING = [
    "127.0.0.1", "192.168.1.20", "version 1.2.3", "1.2.3.4.5", "300.1.1.1", "std::vector", "a::b", "12:30:45", "::1",
    "1990 1991 1992 1993 1994", "2024-11-26", "3.14159265358979", "4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01",
    "@decorator", "user@host", "git@", "https://example.org/a:b@c", "#1234567", "ISBN 978-3-16-148410-0", "10,000,000",
    "AKIA", "sk-short", "0x7fffffffffff", "555-1234",
]  # fmt: skip
AROUND = ["{}", "Call or write: {}.", "({})", "电话：{}，谢谢", "<a href='x'>{}</a>", "\n{}\n", '"{}",']


def kinds_in(text, regions=("US",)):
    return [span.kind for span in find(text, regions)]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in HOLD.items() for text in texts])
def test_personal_data_is_found_whatever_stands_around_it(kind, text):
    for around in AROUND:
        assert kinds_in(around.format(text)) == [kind], around


@pytest.mark.parametrize("text", HOLD_NOTHING)
def test_what_only_looks_like_personal_data_is_not_found(text):
    assert kinds_in(f"It says {text} here.") == []


def test_national_telephone_numbers_are_known_of_the_regions_asked_for():
    assert kinds_in("020 7946 0958", ("US",)) == []
    assert kinds_in("(020 7946 0958)", ("GB",)) == ["phone"]
    assert kinds_in("电话13812345678", ("CN",)) == ["phone"]


def test_personal_data_that_overlaps_counts_once_as_the_first_kind():
    assert kinds_in("https://u:x@mail.example.org") == ["credentials"]
    assert kinds_in("mail 8.8.8.8@example.org") == ["email"]


def test_personal_data_columns_count_every_kind():
    text = "\n".join(text for texts in HOLD.values() for text in texts)
    values = build_scorer("personal_data").score([text, "nothing here"])
    assert {column: counts[0] for column, counts in values.items()} == {COLUMNS[k]: len(v) for k, v in HOLD.items()}
    assert all(counts[1] == 0 for counts in values.values())


def test_manual_of_python_holds_hardly_any_personal_data():
    found = build_scorer("personal_data").score([document["text"] for document in english()])
    counted = {column: sum(counts) for column, counts in found.items()}
    assert sum(counted.values()) <= 3, counted


def test_mask_leaves_nothing_of_its_kinds_and_all_else_as_it_is():
    text = "\n".join(f"before {text} after" for texts in HOLD.values() for text in texts)
    masked = PersonalMask(kinds=KINDS)(text)
    assert kinds_in(masked) == []
    assert masked.count("before ") == masked.count(" after") == sum(map(len, HOLD.values()))
    for kind, texts in HOLD.items():
        assert masked.count(f"<{kind.upper()}>") == len(texts)
    emails = PersonalMask(kinds=("email",))(text)
    assert set(kinds_in(emails)) == set(KINDS) - {"email"}
    assert "https://<CREDENTIALS>@host.example/x" in masked


PIECES = st.sampled_from(
    [*(t for texts in HOLD.values() for t in texts), *HOLD_NOTHING, "@", ".", "-", " ", "1", "a", ":"]
)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_masked_text_of_any_make_holds_no_address(text):
    assert kinds_in(PersonalMask(kinds=KINDS)(text)) == []
    spans = find(text, ("US",))
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))


@given(st.text())
def test_mask_of_text_without_personal_data_is_the_text(text):
    if not find(text, ("US",)):
        assert PersonalMask(kinds=KINDS)(text) == text


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run over texts and captioned pictures with addresses in them, masked, and its folder."""
    folder = tmp_path_factory.mktemp("masked")
    tiny.write_data(folder / "data")
    texts = [f"Dear reader {number}, write to {text} for more of it." for number, text in enumerate(_addresses())]
    lines = [
        json.dumps({"id": f"doc-{number}", "text": text, "note": {"by": [text]}}) for number, text in enumerate(texts)
    ]
    (folder / "data" / "text" / "texts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "data" / "photos" / "captions.jsonl").write_text(
        "".join(json.dumps({"file": f"photo.{n}.png", "caption": f"By bob{n}@example.org"}) + "\n" for n in range(3))
    )
    return folder


def _addresses():
    return [text for kind in ("email", "phone", "ip") for text in HOLD[kind]]


def chain_of(folder, mask, sources=("text",)):
    changes = {
        "tokenize.mask": mask,
        "filter.text.scorers": {"personal_data": {}},
        "filter.text.rules": {"all": "num_emails >= 0"},
        "filter.text.carry": ["num_emails", "num_phone_numbers", "num_ip_addresses"],
    }
    value = tiny.recipe(folder / "data", str(folder / "root"), changes, sources=sources)
    return Chain(recipe=check_recipe(value, "tiny"), options=ChainOptions(quiet=True))


def members(snapshot):
    """Return the bytes of every member of a snapshot's archives, by name."""
    found = {}
    for commit in snapshot.commits:
        data = snapshot.folder.store.read_bytes(snapshot.folder.at(commit.data.name))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_masked_archive_holds_no_address_and_as_many_placeholders_as_were_counted(masked):
    chain = chain_of(masked, {"kinds": ["email", "phone", "ip"]})
    vocabulary = build_vocabulary(chain.recipe.tokenize.vocabulary)
    placeholders = {"num_emails": "<EMAIL>", "num_phone_numbers": "<PHONE>", "num_ip_addresses": "<IP>"}
    found = members(chain.tokenize["text"])
    documents = [name for name in found if name.endswith(".json")]
    assert len(documents) == len(_addresses())
    for name in documents:
        ids = np.load(io.BytesIO(found[name.replace(".json", ".text.npy")]))
        text = vocabulary.text.decode(ids.tolist())
        assert kinds_in(text) == [] and text.startswith("Dear reader")
        scores = json.loads(found[name])["scores"]
        assert {column: text.count(mark) for column, mark in placeholders.items()} == scores
        assert json.loads(found[name])["metadata"]["note"]["by"] == [text]
    everything = b"".join(found.values())
    assert not any(text.encode() in everything for text in _addresses())


def test_masked_captions_hold_no_address_in_ids_or_document(masked):
    chain = chain_of(masked, {"kinds": ["email"]}, ("photos",))
    found = members(chain.tokenize["photos"])
    captions = [json.loads(data)["captions"] for name, data in found.items() if name.endswith(".json")]
    assert captions == [["By <EMAIL>"]] * 3
    assert b"example.org" not in b"".join(found.values())
    document = json.loads(next(data for name, data in found.items() if name.endswith(".json")))
    assert document["source_caption"] == "By <EMAIL>"


def test_mask_is_part_of_the_token_stage_and_of_nothing_before_it(masked):
    plain, some, more = (chain_of(masked, mask) for mask in ({}, {"kinds": ["email"]}, {"kinds": ["email", "phone"]}))
    folders = [chain.tokenize["text"].folder.path for chain in (plain, some, more)]
    assert len(set(folders)) == 3
    assert plain.select["text"].digest == more.select["text"].digest
    assert plain.score["text"][0].folder.path == more.score["text"][0].folder.path
    raw = (masked / "data" / "text" / "texts.jsonl").read_text()
    assert all(json.dumps(text)[1:-1] in raw for text in _addresses())
    assert b"jane.doe+x@example.co.uk" in bytes(
        np.concatenate([np.load(io.BytesIO(d)) for n, d in members(plain.tokenize["text"]).items() if "text.npy" in n]
    ).astype(np.uint8))  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ({"kinds": ["mail"]}, "tokenize.mask.kinds.0: .*'email'.*found 'mail'"),
        ({"kinds": ["phone"], "phone_regions": ["XX"]}, "tokenize.mask.phone_regions: no numbering plan of 'XX'"),
        ({"kind": ["email"]}, "tokenize.mask.kind: no such key; allowed: kinds, phone_regions"),
    ],
)
def test_recipe_with_a_wrong_mask_says_what_is_allowed(masked, mask, says):
    with pytest.raises(RecipeError, match=says):
        check_chain(chain_of(masked, mask))


def test_counts_table_has_its_types():
    scorer = build_scorer("personal_data")
    table = pl.DataFrame(dict(scorer.score(["a@b.org", ""])), schema=dict(scorer.columns), strict=True)
    assert table["num_emails"].to_list() == [1, 0] and set(table.dtypes) == {pl.Int32}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("write to _john@example.com_ or", "write to <EMAIL>_ or"),
        ("john@example.com_", "<EMAIL>_"),
        ("?to=john%40example.com&x", "?to=<EMAIL>&x"),
        ("ftp://u:p@ss@host/", "ftp://<CREDENTIALS>@host/"),
    ],
)
def test_mask_sees_through_marks_around_and_inside_of_what_it_masks(text, left):
    assert PersonalMask(kinds=("credentials", "email"), phone_regions=())(text) == left
