# SPDX-License-Identifier: Apache-2.0
"""Optimisation profiles: the shapes an engine is built for, and which of them a batch runs in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helpers.backends.trt.choice import Kind
from helpers.config import BuildOptions

Shape = tuple[int, ...]
PADDED_INPUTS = ("input_ids", "segment_ids", "input_mask")


@dataclass(frozen=True)
class Bounds:
    """Least, best and largest shape of one input in one profile."""

    least: Shape
    best: Shape
    most: Shape


Profile = Mapping[str, Bounds]


@dataclass(frozen=True)
class Plan:
    """Sizes of the network's inputs (-1 dynamic) and its profiles; none when everything is static."""

    batch: int
    seqlen: int
    profiles: Sequence[Profile]


def plan(options: BuildOptions, kind: Kind) -> Plan:
    """Return the shapes of an engine for the -b and -s lists of the command line."""
    return _packed(options) if options.layout == "packed" else _padded(options, kind)


def _padded(options: BuildOptions, kind: Kind) -> Plan:
    """One batch size and one length: a static engine. Otherwise one profile a pair, batches ascending, lengths within.

    Several lengths make the batch axis dynamic too: a static axis cannot have the minimum 1 the profiles promise. The length
    of a plugin profile is exact; without plugins it reaches down to the next shorter one, so a batch runs at its own length.
    """
    batches, lengths = sorted(set(options.batch_sizes)), sorted(set(options.sequence_lengths))
    if options.distributive_independence:
        batches, lengths = batches[-1:], lengths[-1:]
    elif len(batches) == len(lengths) == 1:
        return Plan(batches[0], lengths[0], [])
    shorter = dict(zip(lengths, [0, *lengths], strict=False))
    profiles = []
    for batch in batches:
        for length in lengths:
            least = shorter[length] + 1 if kind == "typed" and len(lengths) > 1 else length
            bounds = Bounds((1, least), (batch, length), (batch, length))
            profiles.append(dict.fromkeys(PADDED_INPUTS, bounds))
    return Plan(-1, -1 if len(lengths) > 1 else lengths[0], profiles)


def _packed(options: BuildOptions) -> Plan:
    """One profile a batch size, ascending, all axes dynamic; the least batch is one sequence of one token."""
    longest, profiles = max(options.sequence_lengths), []
    for batch in sorted(set(options.batch_sizes)):
        tokens = Bounds((1,), (batch * longest,), (batch * longest,))
        offsets = Bounds((2,), (batch + 1,), (batch + 1,))
        lengths = Bounds((1,), (longest,), (longest,))
        profiles.append({"input_ids": tokens, "segment_ids": tokens, "cu_seqlens": offsets, "max_seqlen": lengths})
    return Plan(-1, -1, profiles)


def fitting(profiles: Sequence[Profile], batch: int, seqlen: int, tokens: int) -> int | None:
    """Return the profile that wastes least on a batch, or None when none is large enough.

    Padded profiles are measured by the rectangle they compute, packed ones by the tokens they are tuned for.
    """
    best, cost = None, (0, 0)
    for index, profile in enumerate(profiles):
        if "input_mask" in profile:
            bounds = profile["input_mask"]
            if batch > bounds.most[0] or seqlen > bounds.most[1]:
                continue
            shape = rectangle(bounds, batch, seqlen)
            candidate = (shape[0] * shape[1], bounds.best[0] * bounds.best[1])
        else:
            if batch + 1 > profile["cu_seqlens"].most[0] or tokens > profile["input_ids"].most[0]:
                continue
            if "max_seqlen" in profile and seqlen > profile["max_seqlen"].most[0]:
                continue
            candidate = (0, profile["input_ids"].best[0])
        if best is None or candidate < cost:
            best, cost = index, candidate
    return best


def rectangle(bounds: Bounds, batch: int, seqlen: int) -> tuple[int, int]:
    """Return the (batch, seqlen) to run a padded batch at: at least the profile's least shape."""
    return max(batch, bounds.least[0]), max(seqlen, bounds.least[1])


def describe(profiles: Sequence[Profile]) -> str:
    """Return the largest shapes of all profiles, for messages."""
    if profiles and "input_mask" in profiles[0]:
        return ", ".join(f"batch {p['input_mask'].most[0]} x length {p['input_mask'].most[1]}" for p in profiles)
    return ", ".join(
        f"batch {p['cu_seqlens'].most[0] - 1} x length {p.get('max_seqlen', p['input_ids']).most[0]}" for p in profiles
    )
