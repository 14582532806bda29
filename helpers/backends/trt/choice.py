# SPDX-License-Identifier: Apache-2.0
"""Which network an engine gets, with plugins or without, and what the plugins cannot take.

The limits were read in the plugin sources of TensorRT 10.16 and 11.1. They must be refused here: an assertion that fails
inside a plugin ends the process, and some sizes give wrong answers without a word.
"""

from __future__ import annotations

from typing import Literal

from helpers.backends.trt.plugin_network import INT8_NORM_SIZES
from helpers.config import BertConfig, BuildOptions
from helpers.errors import MissingDependency, UsageError

Kind = Literal["plugins", "typed"]

LISTED_SM = (75, 80, 86, 87, 89, 90, 100, 120)  # GPUs the plugins have precompiled attention kernels for
PACKED_MASKS = (64, 96, 128, 384)  # lengths at which the embedding plugin writes the fused kernels' mask
INT8_LENGTHS = (128, 384)  # fixed-length INT8 attention; 64 and 96 pass its checks and compute nonsense
LONGEST_PACKED = 384  # positions the variable-length embedding plugin computes; those behind are never written
FUSED_HEAD = 64


def choose(config: BertConfig, options: BuildOptions, weak: bool, sm: int) -> tuple[Kind, str]:
    """Return the kind of network and, where it is not what one would expect, a line that says why.

    weak: TensorRT 10, where plugins are the default. sm: compute capability of the GPU as 10 * major + minor.
    Raises UsageError when what was asked for by name is impossible.
    """
    asked = asked_for(options, weak)
    if options.no_plugins or not (weak or asked):
        return "typed", ""
    reason = refusal(config, options, weak, sm)
    if reason is None:
        return "plugins", ""
    if asked:
        raise UsageError(f"the BERT plugins cannot build this engine: {reason}; add --no-plugins to build it without them")
    return "typed", f"the BERT plugins cannot build this engine ({reason}): building without plugins"


def asked_for(options: BuildOptions, weak: bool) -> bool:
    """Return whether plugins were asked for by name; -il names a layout that only they have, where they can have it."""
    named = options.v3_plugins or bool(options.extra.get("deprecated_plugins"))
    return named or (weak and options.interleaved and options.int8)


def refusal(config: BertConfig, options: BuildOptions, weak: bool, sm: int) -> str | None:
    """Return why the plugins cannot build this engine, or None when they can."""
    if options.bf16 or options.fp8:
        return f"they know FP32, FP16 and INT8, not {'BF16' if options.bf16 else 'FP8'}"
    if options.int8 and not weak:
        return "their INT8 takes its ranges from tensors, which TensorRT 11 no longer has"
    if options.int8 and sm < 75:
        return f"their INT8 needs compute capability 7.5 or later, this GPU has {sm // 10}.{sm % 10}"
    if options.layout == "packed":
        return _refuse_packed(config, options, sm)
    return _refuse_fixed(config, options, sm)


def _refuse_fixed(config: BertConfig, options: BuildOptions, sm: int) -> str | None:
    head, lengths = config.head_size, options.sequence_lengths
    if options.int8 and options.force_int8_skipln and config.hidden_size not in INT8_NORM_SIZES:
        return f"-iln needs hidden size 768 or 1024, the model has {config.hidden_size}"
    if options.int8 and options.force_int8_multihead:
        if head != FUSED_HEAD or sm not in LISTED_SM:
            return f"-imh needs head size 64 and a GPU of compute capability {_listed()}, here are {head} and {sm / 10}"
        if len(lengths) > 1 or lengths[0] not in INT8_LENGTHS:
            return f"-imh needs one sequence length of 128 or 384, asked were {_list(lengths)}"
        return None
    if not options.fp16:
        return None  # FP32 attention takes every size
    if 512 in lengths and sm >= 90 and sm in LISTED_SM:
        return "FP16 attention at length 512 reads a mask that is not written on this GPU"
    masked = [length for length in lengths if length in PACKED_MASKS]
    if head != FUSED_HEAD and masked and sm in LISTED_SM:
        return f"FP16 attention at length {_list(masked)} needs head size 64, the model has {head} (other lengths work)"
    return None


def _refuse_packed(config: BertConfig, options: BuildOptions, sm: int) -> str | None:
    longest = max(options.sequence_lengths)
    if sm not in LISTED_SM:
        return f"variable length needs a GPU of compute capability {_listed()}, this one has {sm / 10}"
    if not (options.fp16 or options.int8):
        return "variable length needs --fp16 or --int8"
    if config.head_size != FUSED_HEAD:
        return f"variable length needs head size 64, the model has {config.head_size}"
    if longest > LONGEST_PACKED:
        return f"variable length ends at 384 tokens, asked were {longest}"
    if options.interleaved and options.int8 and config.hidden_size not in INT8_NORM_SIZES:
        return f"-il needs hidden size 768 or 1024, the model has {config.hidden_size}"
    if options.megatron and not (options.interleaved and options.int8):
        return "--megatron needs --int8 and -il/--interleaved"
    return None


def require_plugins(found: bool, version: str) -> None:
    """Raise MissingDependency when TensorRT's plugin library did not load."""
    if not found:
        raise MissingDependency(
            f"the plugin library of TensorRT {version} could not be initialised; install libnvinfer_plugin of the same version "
            "or build without plugins by adding --no-plugins"
        )


def _list(values: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, values))


def _listed() -> str:
    return ", ".join(f"{sm // 10}.{sm % 10}" for sm in LISTED_SM)
