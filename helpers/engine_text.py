# SPDX-License-Identifier: Apache-2.0
"""What has to be known of an engine before it is loaded: its description, and the tokenizer that fits its model."""

from __future__ import annotations

from pathlib import Path

from helpers.config import BertConfig
from helpers.engine_file import EngineInfo, is_bare_plan, read_info, text_digest
from helpers.errors import EngineMismatch, InputError, UsageError
from helpers.tokenization import FullTokenizer, one_token_a_line


def engine_info(path: str | Path) -> EngineInfo:
    """Return what an engine file says of itself; for a TensorRT plan made elsewhere, what its tensors say."""
    if is_bare_plan(path):
        from helpers.backends import trt

        return trt.bare_info(Path(path))
    return read_info(path)


def engine_tokenizer(engine: str | Path, info: EngineInfo, vocab_file: str | Path | None, lower_case: bool | None) -> FullTokenizer:
    """Return the tokenizer of an engine; the engine's own vocabulary, or the given one if it is the same."""
    if vocab_file is None:
        if info.vocab is None:
            raise UsageError(f"the engine {engine} carries no vocabulary; give the model's vocab.txt with -v/--vocab-file")
        return FullTokenizer(info.vocab, info.lower_case if lower_case is None else lower_case, f"the vocabulary of {engine}")
    casing = info.lower_case if lower_case is None and info.vocab is not None else lower_case
    tokenizer = FullTokenizer.from_file(vocab_file, casing)
    own = None if info.vocab is None else one_token_a_line(info.vocab)
    if own is not None and tokenizer.vocab != own:
        counts = [vocab.count("\n") for vocab in (tokenizer.vocab, own)]
        raise EngineMismatch(
            f"the vocabulary {vocab_file} ({counts[0]} tokens, digest {tokenizer.digest}) is not the one that {engine} "
            f"carries ({counts[1]} tokens, digest {text_digest(own)}); leave -v out"
        )
    check_vocabulary(tokenizer, info.config, f"the vocabulary {vocab_file}")
    return tokenizer


def check_vocabulary(tokenizer: FullTokenizer, config: BertConfig, where: str) -> None:
    """Raise InputError when a vocabulary has ids that the model's embedding table lacks."""
    if tokenizer.largest_id >= config.vocab_size:
        raise InputError(
            f"{where} has {tokenizer.largest_id + 1} lines, the model's embedding table {config.vocab_size} rows; "
            "give the vocab.txt that belongs to the checkpoint"
        )
