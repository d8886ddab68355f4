"""From ids to text: whole characters, nothing behind a stop string, whatever the pieces are."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the 'hf' extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.serve.engine.text import Detokenizer, StopStrings
from serve_support import byte_ids, byte_tokenizer

TOKENIZER = byte_tokenizer(("Ġthe", "Ã©", "Ġð", "ŁĴĸ"))  # the last two are halves of " 💖"
LETTERS = st.text(st.sampled_from("ab€"), min_size=1, max_size=4)


def first_stop(text: str, stops: list[str]) -> str:
    """The text up to the stop string that is complete first, character by character."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(st.lists(st.text(st.sampled_from("ab€"), max_size=5)), st.lists(LETTERS, max_size=4))
def test_the_text_is_cut_at_the_first_stop_however_it_comes(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    expected = first_stop(whole, stops)
    cut, given_text = StopStrings(stops), ""
    for piece in pieces:
        given_text += cut.push(piece)
        assert expected.startswith(given_text)
        if cut.stopped:
            break
    else:
        given_text += cut.push("", last=True)
    assert given_text == expected
    assert cut.stopped == (expected != whole)


@given(st.lists(LETTERS, max_size=3), st.text(st.sampled_from("ab€"), max_size=9))
def test_no_more_is_held_back_than_may_become_a_stop_string(stops: list[str], text: str) -> None:
    cut = StopStrings(stops)
    given_text = "".join(cut.push(letter) for letter in text)
    if not cut.stopped:
        held = text[len(given_text) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@settings(max_examples=100)
@given(
    st.lists(
        st.one_of(
            st.integers(0, len(TOKENIZER) - 1).map(lambda token: [token]),
            st.text(max_size=3).map(byte_ids),
        ),
        max_size=12,
    )
)
def test_pieces_of_text_add_up_and_never_end_inside_a_character(parts: list[list[int]]) -> None:
    ids = [token for part in parts for token in part]
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(token) for token in ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == TOKENIZER.decode(ids)


@given(st.text(max_size=20))
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    text = text.replace("\ufffd", "")
    detokenizer = Detokenizer(TOKENIZER)
    for character in text:
        pieces = [detokenizer.push(token) for token in byte_ids(character)]
        assert pieces == [""] * (len(pieces) - 1) + [character]
    assert detokenizer.flush() == ""
