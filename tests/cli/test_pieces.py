"""Texts of tokens: whole characters only, none lost, whatever the tokenizer makes of a token alone."""

import random

import pytest

from sparrow.cli.pieces import BROKEN, Pieces, text_after, texts_of
from sparrow.miniature.shipped import pair


class Bytes:
    """A tokenizer whose tokens are bytes; 256 is special."""

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=True):
        data = b"".join(b"<end>" * (not skip_special_tokens) if i == 256 else bytes([i]) for i in ids)
        return data.decode(errors="replace")


class Words:
    """A tokenizer whose first word has no blank before it, as sentencepiece's."""

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=True):
        return " ".join(f"w{i}" for i in ids)


TEXTS = ["plain", "é1", "日本語 é", "👩‍👩‍👧", "a\n<b>&\u2028</script>", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_comes_with_its_last_byte(text):
    pieces = Pieces(Bytes())
    added = [pieces.add(byte) for byte in text.encode()]
    assert "".join(added) == text and not any(BROKEN in piece for piece in added)
    assert [piece for piece in added if piece] == list(text)


def test_what_never_becomes_whole_comes_last():
    assert texts_of(Bytes(), [*b"a", 0xE2, 0x82]) == ["a", "", BROKEN]
    assert texts_of(Bytes(), [*b"a", 0xE2, *b"b"]) == ["a", "", BROKEN + "b"]
    assert texts_of(Bytes(), []) == []


def test_special_tokens_are_shown_where_asked_for():
    assert texts_of(Bytes(), [*b"a", 256]) == ["a", "<end>"]
    pieces = Pieces(Bytes())
    assert [pieces.add(i) for i in (*b"a", 256, *b"b")] == ["a", "", "b"]


def test_blanks_before_words_are_kept():
    assert texts_of(Words(), [1, 2, 3]) == ["w1", " w2", " w3"]
    assert text_after(Words(), 1, 2) == " w2"


def test_behind_a_part_of_a_character():
    first, last = "é".encode()
    assert text_after(Bytes(), first, last) == "é"
    assert text_after(Bytes(), *b"a", first) == BROKEN


def test_the_shipped_tokenizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair()[0])
    ids = random.Random(0).choices(range(len(tokenizer)), k=300)
    assert "".join(texts_of(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
