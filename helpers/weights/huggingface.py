# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model directory: which of its files holds the weights, and the vocabulary in either of its two forms."""

from __future__ import annotations

from pathlib import Path

from helpers.config import BertConfig
from helpers.errors import InputError
from helpers.files import is_file, read_json
from helpers.tokenization import FullTokenizer
from helpers.weights import Weights, pytorch


def read(config: BertConfig, directory: str | Path) -> Weights:
    """Return the weights of model.safetensors, else of pytorch_model.bin; raise InputError where neither is there."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = Path(directory) / name
        if is_file(path, "weights file"):
            return pytorch.read(config, path)
    raise InputError(
        f"{directory} holds neither model.safetensors nor pytorch_model.bin; fetch the whole model with download_model.sh"
    )


def tokenizer(directory: str | Path, lower_case: bool | None) -> FullTokenizer | None:
    """Return the tokenizer of vocab.txt, else of tokenizer.json; None where neither is there."""
    vocab, combined = Path(directory) / "vocab.txt", Path(directory) / "tokenizer.json"
    if is_file(vocab, "vocabulary"):
        return FullTokenizer.from_file(vocab, lower_case)
    if not is_file(combined, "tokenizer"):
        return None
    content = read_json(combined, "tokenizer")
    try:
        if content["model"].get("type", "WordPiece") != "WordPiece":
            raise InputError(f"{combined} is a {content['model']['type']} tokenizer; only BERT's WordPiece is supported")
        ids = content["model"]["vocab"]
        lines = [""] * (max(ids.values()) + 1)
        for token, number in ids.items():
            lines[number] = token
        normalizer = content.get("normalizer") or {}
        casing = normalizer.get("lowercase") if lower_case is None else lower_case
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"{combined} holds no WordPiece vocabulary ({error!r}); give vocab.txt with -v/--vocab-file") from error
    if casing is not None and not isinstance(casing, bool):
        raise InputError(
            f"{combined} has lowercase {casing!r}, which is neither true nor false; mend it, or give --cased or --uncased"
        )
    return FullTokenizer("\n".join(lines), casing, f"the tokenizer {combined}")
