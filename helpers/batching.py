# SPDX-License-Identifier: Apache-2.0
"""Batches of token sequences, packed without padding; padding and its removal for backends that need rectangles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Sequences laid end to end.

    ids, segments: int32 (tokens,); cu_seqlens: int32 (batch + 1,), first 0, last tokens; max_seqlen: the longest of them.
    """

    ids: np.ndarray
    segments: np.ndarray
    cu_seqlens: np.ndarray
    max_seqlen: int

    @property
    def size(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Return the length of every sequence, (batch,)."""
        return np.diff(self.cu_seqlens)

    def pad(self, seqlen: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids, segments and mask as int32 (batch, seqlen), zeros behind each sequence."""
        mask = self.mask(seqlen)
        ids, segments = np.zeros(mask.shape, np.int32), np.zeros(mask.shape, np.int32)
        ids[mask], segments[mask] = self.ids, self.segments
        return ids, segments, mask.astype(np.int32)

    def mask(self, seqlen: int | None = None) -> np.ndarray:
        """Return which positions of a padded (batch, seqlen) rectangle are real."""
        return np.arange(seqlen or self.max_seqlen) < self.lengths[:, None]

    def unpad(self, padded: np.ndarray) -> np.ndarray:
        """Return (batch, seqlen, ...) without its padding: (tokens, ...)."""
        return padded[self.mask(padded.shape[1])]


def pack(ids: Sequence[np.ndarray], segments: Sequence[np.ndarray]) -> Batch:
    """Return the batch of several (length,) sequences."""
    lengths = [len(sequence) for sequence in ids]
    cu_seqlens = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    return Batch(
        np.concatenate(ids).astype(np.int32, copy=False),
        np.concatenate(segments).astype(np.int32, copy=False),
        cu_seqlens,
        max(lengths),
    )


def random_batch(lengths: Sequence[int], vocab_size: int, seed: int = 12345) -> Batch:
    """Return a batch of random ids, half of each sequence in segment 1: input for benchmarks and tests."""
    random = np.random.default_rng(seed)
    ids = [random.integers(0, vocab_size, length, dtype=np.int32) for length in lengths]
    segments = [(np.arange(length) >= length // 2).astype(np.int32) for length in lengths]
    return pack(ids, segments)
