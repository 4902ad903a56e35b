"""How single tokens read inside a text, whatever the tokenizer."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from dllm.text.spelling import Speller
from tests.echo import echo, write_tiny

SEVEN = "one two three four five six seven"
BYTES = "naïve 日本 🙂👍🏽 x"  # characters of two to four bytes, each byte a token


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return echo(write_tiny(tmp_path_factory.mktemp("tiny"))).text


@given(st.lists(st.sampled_from([*SEVEN.split(), ",", "\n", "é", "🙂", "  "])))
@example(["🙂"])
def test_pieces_join_to_the_text(text, words):
    ids = text.encode(" " + " ".join(words))
    assert "".join(Speller(text).pieces(ids)) == text.decode(ids)


@given(st.data())
def test_a_masked_position_changes_no_other_run(text, data):
    ids = text.encode(f" {BYTES} {SEVEN}")
    cut = data.draw(st.integers(1, len(ids) - 1))
    pieces = Speller(text).pieces(ids)
    if "" in (pieces[cut - 1], pieces[cut]):
        return  # inside a character
    got = Speller(text).pieces([*ids[:cut], None, *ids[cut + 1 :]])
    assert got[: cut - 1] == pieces[: cut - 1]
    assert got[cut] == ""


def test_words_keep_their_space_wherever_they_stand(text):
    ids = text.encode(f" {SEVEN}")
    assert Speller(text).pieces([ids[0], None, ids[2]]) == ["one", "", " three"]


def test_a_character_of_several_tokens_stands_with_the_last(text):
    ids = text.encode(" one🙂")
    assert Speller(text).pieces(ids) == ["one", "", "", "", "🙂"]
    assert Speller(text).pieces(ids[:-1]) == ["one", "", "", "\ufffd"]


def test_a_word_that_begins_inside_a_character_keeps_its_space():
    table = [b"x", b" one", b" \xf0\x9f", b"\x99\x82"]

    class Codec:
        has_chat_template = False

        def encode(self, text):
            return [0]

        def decode(self, ids):
            return b"".join(table[i] for i in ids).decode(errors="replace").removeprefix(" ")

    assert Speller(Codec()).pieces([1, 2, 3]) == ["one", "", " 🙂"]
    assert Speller(Codec()).pieces([2, 3, 1]) == ["", "🙂", " one"]


def test_sentencepiece_like_decoders():
    vocab = {"▁x": 0, "▁one": 1, "ly": 2, "▁two": 3}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="▁x"))
    tokenizer.decoder = decoders.Metaspace()

    class Codec:
        has_chat_template = False

        def encode(self, text):
            return [0]

        def decode(self, ids):
            return tokenizer.decode(list(ids))

    assert Speller(Codec()).pieces([1, 2, 3]) == ["one", "ly", " two"]
    assert Speller(Codec()).pieces([None, 3, 2]) == ["", " two", "ly"]
