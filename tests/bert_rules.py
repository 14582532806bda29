# SPDX-License-Identifier: Apache-2.0
"""BERT's tokenization rules written out plainly: slow, and the measure of the fast tokenizer."""

from __future__ import annotations

import unicodedata

CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def is_punctuation(char: str) -> bool:
    code = ord(char)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(char).startswith("P")


def basic_tokens(text: str, lower_case: bool) -> list[str]:
    cleaned = []
    for char in text:
        category = unicodedata.category(char)
        if char in "\t\n\r" or category == "Zs":
            cleaned.append(" ")
        elif char in "\x00\ufffd" or category.startswith("C"):
            continue
        elif any(low <= ord(char) <= high for low, high in CJK):
            cleaned.append(f" {char} ")
        else:
            cleaned.append(char)
    words: list[str] = []
    for word in "".join(cleaned).split():
        if lower_case:
            word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        current = ""
        for char in word:
            if is_punctuation(char):
                words += [current, char]
                current = ""
            else:
                current += char
        words.append(current)
    return [word for word in words if word]


def word_pieces(text: str, vocab: dict[str, int], lower_case: bool = True, longest: int = 200) -> list[str]:
    pieces: list[str] = []
    for word in basic_tokens(text, lower_case):
        found: list[str] = []
        begin = 0
        while begin < len(word) <= longest:
            end = len(word)
            while end > begin and ("##" if begin else "") + word[begin:end] not in vocab:
                end -= 1
            if end == begin:
                break
            found.append(("##" if begin else "") + word[begin:end])
            begin = end
        pieces += found if begin == len(word) else ["[UNK]"]
    return pieces
