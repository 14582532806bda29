# SPDX-License-Identifier: Apache-2.0
"""BERT's tokenization over the `tokenizers` library, with the place of every word piece in the original text.

The rules are those of google-research/bert: clean, space out CJK, lower-case and strip accents (uncased models), split at
punctuation, then greedy longest-match word pieces. Special tokens typed by a user are split like any text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.engine_file import text_digest
from helpers.errors import InputError, MissingDependency
from helpers.files import read_json, read_text

_SURROGATES = re.compile("[\ud800-\udfff]")
# Python, and with it BERT, lower-cases a capital sigma that ends a word to the final form; the library does not.
_FINAL_SIGMA = re.compile(r"(?<=[^\W\d_])Σ(?![^\W\d_])")
LONGEST_WORD = 200  # characters; a longer word is [UNK]


@dataclass(frozen=True)
class Tokens:
    """Word pieces of one text: ids, and the characters [start, end) of the text each came from; int32 (pieces,) each.

    The accents that uncased models strip belong to the piece of the letter they stand on.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class FullTokenizer:
    """Texts to word pieces, by one vocabulary.

    vocab: one token a line, line number = id; a repeated token keeps the last id.
    lower_case: when None, whether the vocabulary has no token with a capital letter.
    """

    def __init__(self, vocab: str, lower_case: bool | None = None, where: str = "the vocabulary") -> None:
        try:
            from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
        except ModuleNotFoundError as error:
            raise MissingDependency("tokenization needs the tokenizers package; pip install tokenizers") from error
        self.vocab = one_token_a_line(vocab)
        self.ids = {line: number for number, line in enumerate(self.vocab[:-1].split("\n"))}
        missing = [token for token in ("[CLS]", "[SEP]", "[UNK]") if token not in self.ids]
        if missing:
            raise InputError(f"{where} is no BERT vocabulary: it lacks {', '.join(missing)}; give the model's vocab.txt with -v")
        if lower_case is None:
            lower_case = not any(token != token.lower() for token in self.ids if not token.startswith("["))
        self.lower_case = lower_case
        self.cls_id, self.sep_id = self.ids["[CLS]"], self.ids["[SEP]"]
        self._tokenizer = Tokenizer(models.WordPiece(self.ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
        self._tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lower_case
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    @classmethod
    def from_file(cls, path: str | Path, lower_case: bool | None = None) -> FullTokenizer:
        """Read vocab.txt; casing, when not given, comes from the tokenizer_config.json beside it, else from the vocabulary."""
        path = Path(path)
        text = read_text(path, "vocabulary")
        return cls(text, casing_beside(path) if lower_case is None else lower_case, f"the vocabulary {path}")

    @property
    def digest(self) -> str:
        return text_digest(self.vocab)

    @property
    def largest_id(self) -> int:
        return max(self.ids.values())

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the word pieces of every text, in order; several texts are worked on by all cores."""
        result = []
        encodings = self._tokenizer.encode_batch([self._clean(text) for text in texts], add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
            _add_marks(text, offsets)
            result.append(Tokens(np.array(encoding.ids, np.int32), offsets[:, 0], offsets[:, 1]))
        return result

    def tokenize(self, text: str) -> list[str]:
        """Return the word pieces of a text as strings."""
        tokens: list[str] = self._tokenizer.encode(self._clean(text), add_special_tokens=False).tokens
        return tokens

    def _clean(self, text: str) -> str:
        """Return a text of the same length that the library treats as BERT treats the original."""
        # A lone surrogate is no text; BERT drops it like the replacement character that stands in for it here.
        text = _SURROGATES.sub("\ufffd", text)
        return _FINAL_SIGMA.sub("ς", text) if self.lower_case else text

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of word pieces; raise InputError for one that the vocabulary lacks."""
        tokens = list(tokens)
        missing = [token for token in tokens if token not in self.ids]
        if missing:
            raise InputError(f"the vocabulary has no token {missing[0]!r}; tokenize the text with this vocabulary")
        return [self.ids[token] for token in tokens]

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Return the word pieces of ids; [UNK] for an id that the vocabulary lacks."""
        return tuple(self._tokenizer.id_to_token(int(number)) or "[UNK]" for number in ids)


def _add_marks(text: str, offsets: np.ndarray) -> None:
    """Move the ends of pieces behind the combining marks that follow them and that the library has dropped."""
    if text.isascii():
        return
    marks = {char for char in set(text) if unicodedata.category(char) == "Mn"}
    if not marks:
        return
    limits = np.append(offsets[1:, 0], len(text))  # what a next piece begins with was not dropped
    for piece in np.flatnonzero(offsets[:, 1] < limits):
        end, limit = int(offsets[piece, 1]), int(limits[piece])
        while end < limit and text[end] in marks:
            end += 1
        offsets[piece, 1] = end


def one_token_a_line(vocab: str) -> str:
    """Return a vocabulary as its tokens alone, each with a line's end: equal texts mean equal tokens."""
    return "".join(f"{line.strip()}\n" for line in vocab.rstrip().split("\n"))


def casing_beside(vocab_file: Path) -> bool | None:
    """Return do_lower_case of the tokenizer_config.json beside a vocabulary; None where it is not said."""
    path = vocab_file.parent / "tokenizer_config.json"
    if not path.is_file():
        return None
    values = read_json(path, "tokenizer configuration")
    casing = values.get("do_lower_case") if isinstance(values, dict) else None
    if casing is not None and not isinstance(casing, bool):
        raise InputError(
            f"{path} has do_lower_case {casing!r}, which is neither true nor false; mend it, or give --cased or --uncased"
        )
    return casing
