# SPDX-License-Identifier: Apache-2.0
"""The fast tokenizer against BERT's rules, and the places it gives in the original text."""

from __future__ import annotations

import json
import random
import time
import unicodedata

import pytest

from bert_rules import word_pieces
from conftest import MODEL, SAMPLE
from helpers.errors import InputError
from helpers.tokenization import FullTokenizer

VOCAB = MODEL / "vocab.txt"
UNCASED = FullTokenizer.from_file(VOCAB)
CASED = FullTokenizer.from_file(VOCAB, lower_case=False)
TEXTS = [
    "Café naïve, Ünïcödé-straße; 12.5% of A.B.C.",
    "中文没有空格 and 日本語 mixed",
    "[CLS] typed by [MASK] a user [SEP]",
    "control\x07 chars\x00 and \ufffd gone, tab\there, nbsp\u00a0there, zero\u200bwidth",
    "emoji 😀👩‍👩‍👧 here",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eright to left\u202c",
    "각 한국어 조합",
    "a" * 200 + " " + "b" * 201,
    "",
    "   \n\t ",
    "İstanbul ß ﬁ ① ½",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [UNCASED, CASED], ids=["uncased", "cased"])
def test_pieces_are_those_of_berts_rules(tokenizer: FullTokenizer, text: str) -> None:
    assert tokenizer.tokenize(text) == word_pieces(text, tokenizer.ids, tokenizer.lower_case)


def test_pieces_of_real_passages_are_those_of_berts_rules() -> None:
    articles = json.loads(SAMPLE.read_text())["data"]
    for article in articles:
        text = article["paragraphs"][0]["context"]
        assert UNCASED.tokenize(text) == word_pieces(text, UNCASED.ids)


def test_pieces_of_random_unicode_are_those_of_berts_rules() -> None:
    """Assigned characters of Unicode 6 and earlier: the library's tables are older than Python's."""
    draw = random.Random(7)
    ranges = [
        (0x20, 0x250),
        (0x370, 0x3FF),
        (0x400, 0x4FF),
        (0x5D0, 0x5EA),
        (0x2010, 0x2030),
        (0x4E00, 0x4E80),
        (0x1F600, 0x1F640),
        (0x621, 0x64A),
        (0x904, 0x939),
        (0xAC00, 0xAD00),
    ]
    for _ in range(300):
        text = "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(40))
        text = "".join(char for char in text if unicodedata.category(char) != "Cn")
        assert UNCASED.tokenize(text) == word_pieces(text, UNCASED.ids), ascii(text)


def test_offsets_cut_the_words_out_of_the_original() -> None:
    text = "The\u00a0Café\x00s 中文 cost 5\u200b€."
    (tokens,) = UNCASED.encode([text])
    words = [text[start:end] for start, end in zip(tokens.starts, tokens.ends, strict=True)]
    assert words[0] == "The"
    assert "".join(words[1:]).replace("\x00", "") == "Cafés中文cost5€."
    assert text[tokens.starts[1] :].startswith("Café")


@pytest.mark.parametrize(
    ("tokenizer", "text", "cuts"),
    [
        (UNCASED, "Beyonce\u0301 sang", ["Beyonce\u0301", "sang"]),
        (UNCASED, "sang Beyonce\u0301\u0323", ["sang", "Beyonce\u0301\u0323"]),
        (UNCASED, "the cafe\u0301s, cafe\u0301", ["the", "cafe\u0301s", ",", "cafe\u0301"]),
        (UNCASED, "\u0301 a\u0301\u0301(\u0301b", ["a\u0301\u0301", "(\u0301", "b"]),
        (CASED, "a\u0301\u0301(\u0301b", ["a\u0301\u0301", "(", "\u0301b"]),
    ],
)
def test_an_accent_that_is_a_character_of_its_own_stays_with_its_letter(tokenizer: FullTokenizer, text: str, cuts: list) -> None:
    """Uncased models strip it, answers keep it."""
    (tokens,) = tokenizer.encode([text])
    assert [text[start:end] for start, end in zip(tokens.starts, tokens.ends, strict=True)] == cuts


def test_a_lone_surrogate_is_dropped_and_offsets_hold() -> None:
    text = "a \ud800 high\udfff answer"
    (tokens,) = UNCASED.encode([text])
    assert UNCASED.tokenize(text) == ["a", "high", "answer"]
    assert text[tokens.starts[2] : tokens.ends[2]] == "answer"


def test_casing_comes_from_the_configuration_beside_the_vocabulary(tmp_path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nApple\napple\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert FullTokenizer.from_file(tmp_path / "vocab.txt").tokenize("Apple") == ["apple"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert FullTokenizer.from_file(tmp_path / "vocab.txt").tokenize("Apple") == ["Apple"]
    assert FullTokenizer.from_file(tmp_path / "vocab.txt", lower_case=True).tokenize("Apple") == ["apple"]


def test_without_a_configuration_the_vocabulary_tells_the_casing() -> None:
    """Capitals in a vocabulary could never be found by lower-cased text."""
    assert FullTokenizer("[UNK]\n[CLS]\n[SEP]\nApple\napple\n").tokenize("Apple") == ["Apple"]
    assert FullTokenizer("[UNK]\n[CLS]\n[SEP]\napple\n").tokenize("Apple") == ["apple"]


def test_a_repeated_token_keeps_the_last_id() -> None:
    assert FullTokenizer("[UNK]\n[CLS]\n[SEP]\nword\nword\n").convert_tokens_to_ids(["word"]) == [4]


def test_a_file_that_is_no_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match=r"lacks \[CLS\], \[SEP\]"):
        FullTokenizer("hello\n[UNK]\n")


def test_a_hundred_thousand_words_take_a_moment() -> None:
    began = time.perf_counter()
    (tokens,) = UNCASED.encode(["quick brown fox jumps over " * 20_000])
    assert len(tokens) == 100_000
    assert time.perf_counter() - began < 5
