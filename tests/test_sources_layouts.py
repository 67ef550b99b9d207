"""Layouts of documents: what each makes of a JSON, and a reason for each JSON that says something else."""

from __future__ import annotations

from typing import Any

import pytest

from tokenmill.errors import SampleError
from tokenmill.pipelines.sources.layouts import lay_out
from tokenmill.pipelines.sources.raw_document import RawPicture, RawText


def _reason(value: Any, layout: str = "auto") -> str:
    with pytest.raises(SampleError) as found:
        lay_out(value, layout)
    return found.value.reason


def _turns(*texts: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": ("human", "gpt")[n % 2], "value": t} for n, t in enumerate(texts)], **more}


def test_obelics_page_keeps_the_order_of_pictures_and_texts():
    value = {"images": [None, "https://e.org/a.png", None], "texts": ["one", None, "two"], "url": "https://e.org"}
    laid = lay_out(value)
    assert laid.parts == (RawText(text="one"), RawPicture(number=0), RawText(text="two"))
    assert [(one.names, one.slot) for one in laid.references] == [(("https://e.org/a.png",), 1)]


def test_obelics_page_of_hugging_face_holds_bytes_and_gaps_of_nothing():
    gap, held = {"bytes": None, "path": None}, {"bytes": b"x", "path": "a.png"}
    laid = lay_out({"images": [gap, held], "texts": ["one", None]})
    assert laid.references[0].data == b"x" and laid.references[0].names == ("a.png",)


def test_obelics_picture_that_is_told_twice_is_one_picture():
    laid = lay_out({"images": ["a.png", None, "a.png"], "texts": [None, "one", None]})
    assert [part.number for part in laid.parts if isinstance(part, RawPicture)] == [0, 0]
    assert len(laid.references) == 1


def test_mmc4_picture_stands_before_the_text_it_was_matched_to():
    images = [
        {"image_name": "b.png", "raw_url": "https://e.org/b.png", "matched_text_index": 1, "matched_sim": 0.3},
        {"image_name": "a.png", "matched_text_index": 0},
    ]
    laid = lay_out({"text_list": ["one", "two"], "image_info": images, "similarity_matrix": [[0.1]]})
    assert laid.parts == (
        RawPicture(number=1), RawText(text="one"), RawPicture(number=0), RawText(text="two")
    )  # fmt: skip
    assert laid.references[0].names == ("b.png", "https://e.org/b.png")


def test_llava_answers_are_learned_and_questions_with_their_pictures_are_not():
    laid = lay_out(_turns("<image>\nWhat?", "A box.", "And <image> here?", "Two.", image=["a.png", "b.png"]))
    ask, answer = {"role": "user", "learn": False}, {"role": "assistant"}
    assert laid.parts == (
        RawPicture(number=0, **ask), RawText(text="What?", **ask), RawText(text="A box.", **answer),
        RawText(text="And", **ask), RawPicture(number=1, **ask), RawText(text="here?", **ask),
        RawText(text="Two.", **answer),
    )  # fmt: skip


def test_llava_turn_says_itself_whether_it_is_learned():
    value = _turns("Hello", "Hi", "Draw it", "<image>", images=["a.png"])
    value["conversations"][1]["loss"] = False
    value["conversations"][0] |= {"learn": True}
    assert [part.learn for part in lay_out(value).parts] == [True, False, False, True]


def test_messages_content_is_a_text_or_a_list_of_parts():
    value = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "image"}, {"type": "text", "text": "And this?"},
                {"type": "image_url", "image_url": {"url": "b.png"}},
            ]},
            {"role": "assistant", "content": [{"type": "text", "text": "Boxes."}]},
        ],
        "images": [{"bytes": b"x", "path": None}],
    }  # fmt: skip
    laid = lay_out(value)
    assert [(type(part).__name__, part.learn) for part in laid.parts] == [
        ("RawText", False), ("RawPicture", False), ("RawText", False), ("RawPicture", False), ("RawText", True)
    ]  # fmt: skip
    assert [one.names for one in laid.references] == [(), ("b.png",)]


def test_segments_say_everything_and_may_leave_out_the_list_of_pictures():
    value = {"segments": [
        {"image": 1}, {"text": "a", "role": "caption"}, {"text": "b", "role": "caption", "variant": 1},
        {"image": 0, "learn": False},
    ]}  # fmt: skip
    laid = lay_out(value)
    assert laid.parts == (
        RawPicture(number=1), RawText(text="a", role="caption"), RawText(text="b", role="caption", variant=1),
        RawPicture(number=0, learn=False),
    )  # fmt: skip
    assert [one.slot for one in laid.references] == [0, 1]


def test_auto_asks_for_a_layout_where_the_keys_are_those_of_several_or_of_none():
    both = {**_turns("a", "b"), "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert _reason(both) == "ambiguous_layout"
    assert lay_out(both, "messages").parts[1] == RawText(text="b", role="assistant")
    assert _reason({"body": "a"}) == "unknown_layout"
    assert _reason(["a"]) == "bad_json"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"images": [None], "texts": ["a", "b"]}, "bad_lists"),
        ({"images": ["a.png"], "texts": ["a"]}, "bad_lists"),
        ({"images": [None], "texts": [None]}, "bad_lists"),
        ({"images": "a.png", "texts": ["a"]}, "bad_lists"),
        ({"images": [None], "texts": [7]}, "bad_lists"),
        ({"images": [7], "texts": [None]}, "bad_picture"),
        ({"images": [None, None], "texts": ["  ", ""]}, "no_content"),
        ({"images": [], "texts": []}, "no_content"),
        ({"images": [None], "texts": ["\ud800"]}, "bad_encoding"),
        ({"images": [f"{n}" for n in range(1025)], "texts": [None] * 1025}, "too_many_pictures"),
        ({"text_list": ["a"], "image_info": [{"image_name": "a", "matched_text_index": 1}]}, "bad_lists"),
        ({"text_list": ["a"], "image_info": [{"matched_text_index": 0}]}, "bad_picture"),
        (_turns("What?"), "no_answer"),
        (_turns("What?", "That.", "And?"), "unanswered_end"),
        (_turns("<image>\nWhat?", "That."), "placeholder_count"),
        (_turns("<image>\nWhat?", "That.", image=["a", "b"]), "placeholder_count"),
        (_turns("What?", "That.", image="a.png"), "placeholder_count"),
        (_turns("What?", ""), "empty_text"),
        (_turns("What?", "That.", video="a.mp4"), "has_video"),
        ({"conversations": []}, "no_content"),
        ({"conversations": "none"}, "bad_lists"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "unknown_role"),
        ({"conversations": [{"from": "gpt", "value": "a", "loss": "often"}]}, "bad_flag"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "learn": False}]},
         "nothing_to_learn"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "unknown_part"),
        ({"segments": [{"text": "a", "image": 0}]}, "bad_lists"),
        ({"segments": [{"text": "a", "role": "stretch"}]}, "unknown_role"),
        ({"segments": [{"text": "a", "variant": -1}]}, "bad_lists"),
        ({"segments": [{"image": 1}]}, "unshown_picture"),
        ({"segments": [{"image": 0}], "images": ["a", "b"]}, "unshown_picture"),
        ({"segments": [{"image": 1}], "images": ["a"]}, "missing_picture"),
        ({"segments": [{"text": " "}]}, "empty_text"),
    ],
)  # fmt: skip
def test_layout_that_contradicts_itself_is_a_reason(value, reason):
    assert _reason(value) == reason
