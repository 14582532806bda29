# SPDX-License-Identifier: Apache-2.0
"""What the BERT plugins compute, in NumPy, with their assertions and their silent mistakes: a network that meets one fails here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trt.number_types import Value, fake_int8, is_exact, rounded

FLOAT, HALF, INT8 = 0, 1, 2
NAMES = {FLOAT: "FLOAT", HALF: "HALF", INT8: "INT8"}
LISTED_SM = (75, 80, 86, 87, 89, 90, 100, 120)
# (type, SM) -> lengths with a precompiled kernel for head size 64, fixed-length layout
FUSED_HALF = {sm: (64, 96, 128, 384) + ((512,) if sm >= 90 else ()) for sm in LISTED_SM}
FUSED_INT8 = {sm: (128, 384) + ((64, 96) if sm == 80 else ()) + ((512,) if sm >= 90 else ()) for sm in LISTED_SM}


def narrowed(x: np.ndarray, name: str) -> np.ndarray:
    return x if is_exact() else rounded(x, name)


class PluginAssert(BaseException):
    """A PLUGIN_ASSERT failed: the real process would end here."""


class WrongResult(Exception):
    """The plugin would compute nonsense without a word."""


def check(condition: bool, message: str, kind: type[BaseException] = PluginAssert) -> None:
    if not condition:
        raise kind(message)


def run_plugin(plugin: Any, inputs: list[Value], amax: list[float | None], sm: int, strong: bool) -> list[Value]:
    """Return the outputs; amax are the dynamic ranges of the outputs."""
    f = plugin.fields
    if plugin.name == "CustomEmbLayerNormPluginDynamic":
        return embeddings(plugin.kind, f, inputs, sm)
    if plugin.name == "CustomSkipLayerNormPluginDynamic":
        return skip_norm(plugin.kind, f, inputs, amax, strong)
    check(inputs[0].array.shape[-2:] == (1, 1) or plugin.kind == "interleaved", "trailing axes of qkv")
    return [attention(plugin.kind, f, inputs, amax[0], sm, strong)]


def embeddings(kind: str, f: dict[str, np.ndarray], inputs: list[Value], sm: int) -> list[Value]:
    beta, gamma = f["bert_embeddings_layernorm_beta"], f["bert_embeddings_layernorm_gamma"]
    hidden = gamma.size
    tables = [f[f"bert_embeddings_{name}_embeddings"].reshape(-1, hidden) for name in ("word", "token_type", "position")]
    words, types, positions = tables
    check(all(value.dtype == "INT32" for value in inputs) and types.shape[0] == 2, "embedding inputs are INT32")
    ids, segments = inputs[0].array, inputs[1].array
    if kind == "fixed":
        check(ids.ndim == 2 and len(inputs) == 3, "embedding inputs are [S, B]")
        position = np.arange(ids.shape[0])[:, None]
    else:
        check(ids.ndim == 1 and len(inputs) == 4, "embedding inputs are [T]")
        cu, longest = inputs[2].array, inputs[3].array.size
        check(longest <= 384, "positions from 384 on are never computed", WrongResult)
        check(int(np.diff(cu).max()) <= longest, "max_seqlen is shorter than a sequence", WrongResult)
        check(cu[0] == 0 and cu[-1] == ids.size, "cu_seqlens", WrongResult)
        position = np.arange(ids.size) - np.repeat(cu[:-1], np.diff(cu))
    total = words[ids] + types[segments] + positions[position]
    half = bool(f.get("output_fp16", [0])[0])
    name = "HALF" if half else "FLOAT"
    normal = narrowed(norm(total, gamma, beta, 0.0), name)[..., None, None]
    if kind == "megatron":
        return [Value(normal, name), Value(narrowed(total, name)[..., None, None], name)]
    if kind == "varseqlen":
        return [Value(normal, name), Value(np.zeros((), np.int32), "INT32", mask_form="placeholder")]
    return [Value(normal, name), encode_mask(inputs[2].array, int(f.get("mha_type_id", [0])[0]), sm)]


def encode_mask(mask: np.ndarray, type_id: int, sm: int) -> Value:
    """Return the mask output: an index of leading ones, or (standing for the register layout) all bits, [B, k]."""
    seqlen = mask.shape[0]
    if type_id != FLOAT and sm in LISTED_SM and seqlen in (64, 96, 128, 384):
        return Value(mask.T.copy(), "INT32", mask_form=f"packed {type_id}")
    leading = np.where((mask == 1).all(0), seqlen, (mask != 1).argmax(0))
    return Value(leading[:, None].astype(np.int32), "INT32", mask_form="index")


def attention(kind: str, f: dict[str, np.ndarray], inputs: list[Value], amax: float | None, sm: int, strong: bool) -> Value:
    hidden, heads = int(f["hidden_size"][0]), int(f["num_heads"][0])
    head, type_id = hidden // heads, int(f["type_id"][0]) if kind != "interleaved" else INT8
    qkv = inputs[0]
    if strong:
        check(qkv.dtype == NAMES[type_id], f"attention of type {type_id} fed with {qkv.dtype}")
    x = narrowed(qkv.array, "HALF") if type_id == HALF else qkv.array
    if type_id == INT8:
        check(qkv.amax is not None and amax is not None, "INT8 attention without ranges", WrongResult)
        check("dq_probs" in f and f["dq_probs"][0] < 0.1, "dq_probs is not amax / 127", WrongResult)
        x = fake_int8(x, qkv.amax)
    quantise = f["dq_probs"][0] if type_id == INT8 else None
    if kind == "fixed":
        out = _fixed_attention(f, x, inputs[1], hidden, heads, type_id, sm, quantise)
    else:
        out = _packed_attention(kind, f, x, inputs, hidden, heads, type_id, quantise)
    check(head * heads == hidden, "head size")
    name = "FLOAT" if type_id == FLOAT else "HALF"
    return Value(fake_int8(out, amax) if type_id == INT8 else narrowed(out, name), name)


def _fixed_attention(
    f: Any, x: np.ndarray, mask: Value, hidden: int, heads: int, type_id: int, sm: int, quantise: Any
) -> np.ndarray:
    check(x.ndim == 5 and x.shape[2] == 3 * hidden, "qkv is [S, B, 3E, 1, 1]")
    check(f["has_mask"][0] == 1 and mask.dtype == "INT32", "mask", WrongResult)
    seqlen, batch, head = x.shape[0], x.shape[1], hidden // heads
    kernels = {HALF: FUSED_HALF, INT8: FUSED_INT8}.get(type_id, {})
    fused = head == 64 and seqlen in kernels.get(sm, ())
    check(fused or type_id != INT8, "no INT8 kernel")
    wanted = f"packed {type_id}" if fused else "index"
    check(mask.mask_form == wanted, f"attention wants the mask as {wanted}, the embeddings wrote {mask.mask_form}", WrongResult)
    if fused:
        check(seqlen in (128, 384) or type_id == HALF, "INT8 at 64 and 96 has the wrong mask stride", WrongResult)
        real = mask.array == 1
    else:
        real = np.arange(seqlen) < mask.array[:, :1]
    rows = x.reshape(seqlen, batch, heads, 3, head).transpose(3, 1, 2, 0, 4)  # per head: q, k, v
    out = _attend(rows[0], rows[1], rows[2], real[:, None, None, :], quantise)
    return out.transpose(2, 0, 1, 3).reshape(seqlen, batch, hidden, 1, 1)


def _packed_attention(
    kind: str, f: Any, x: np.ndarray, inputs: list[Value], hidden: int, heads: int, type_id: int, quantise: Any
) -> np.ndarray:
    head = hidden // heads
    check(head == 64, "only head size 64 is right in the variable-length kernels", WrongResult)
    check(type_id != FLOAT, "variable length knows no FP32")
    cu, longest = inputs[-2].array, inputs[-1].array.size
    check(int(np.diff(cu).max()) <= longest <= 384, "max_seqlen", WrongResult)
    if kind == "varseqlen":
        check(f["has_mask"][0] == 1 and f["var_seqlen"][0] == 1 and len(inputs) == 4, "varseqlen wants four inputs")
        check(x.ndim == 4 and x.shape[1] == 3 * hidden, "qkv is [T, 3E, 1, 1]")
        rows = x.reshape(-1, heads, 3, head).transpose(2, 1, 0, 3)  # (3, heads, tokens, head)
    else:
        check(len(inputs) == 3 and x.ndim == 4 and x.shape[0] == 1 and x.shape[1] == 3 * hidden, "qkv is [1, 3E, T, 1]")
        rows = x.reshape(3, heads, head, -1).transpose(0, 1, 3, 2)
    out = np.empty_like(rows[0])
    for begin, end in zip(cu[:-1], cu[1:], strict=True):
        out[:, begin:end] = _attend(*(rows[i][:, begin:end] for i in range(3)), True, quantise)
    if kind == "varseqlen":
        return out.transpose(1, 0, 2).reshape(-1, hidden, 1, 1)
    return out.transpose(0, 2, 1).reshape(1, hidden, -1, 1)


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, real: Any, quantise: float | None) -> np.ndarray:
    scores = np.where(real, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -np.inf)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights = powers / powers.sum(-1, keepdims=True)
    if quantise is not None:
        weights = fake_int8(weights, 127 * quantise)
    return weights @ v


def skip_norm(kind: str, f: dict[str, np.ndarray], inputs: list[Value], amax: list[float | None], strong: bool) -> list[Value]:
    gamma, beta = f["gamma"], f["beta"]
    type_id = int(f["type_id"][0]) if "type_id" in f else INT8
    x, residual = inputs
    check(x.array.shape == residual.array.shape, "skip-layer-norm shapes")
    axis = 1 if kind in ("interleaved", "megatron") else -3
    check(x.array.shape[axis] == gamma.size == beta.size, "skip-layer-norm size")
    if kind == "fixed":
        check(f["ld"][0] == gamma.size, "ld")
    if strong:
        check(x.dtype == residual.dtype == NAMES[type_id], "skip-layer-norm types")
    a, b = x.array, residual.array
    if type_id == INT8:
        check(gamma.size in (768, 1024), "INT8 skip-layer-norm exists for 768 and 1024 only")
        check(None not in (x.amax, residual.amax, amax[0]), "INT8 skip-layer-norm without ranges", WrongResult)
        check(kind != "megatron" or amax[1] is not None, "output 1 needs a range of its own", WrongResult)
        a, b = fake_int8(a, x.amax), fake_int8(b, residual.amax)  # type: ignore[arg-type]
        gamma, beta = narrowed(gamma, "HALF"), narrowed(beta, "HALF")
    total = np.moveaxis(a + b, axis, -1)
    epsilon = 0.0 if is_exact() else (1.19e-7 if type_id == FLOAT else 9.77e-4) if gamma.size in (768, 1024) else 0.0
    normal = np.moveaxis(norm(total, gamma, beta, epsilon), -1, axis)
    name = "FLOAT" if type_id == FLOAT else "HALF"
    if type_id != INT8:
        return [Value(narrowed(normal, name), name)]
    outputs = [Value(fake_int8(normal, amax[0]), name)]  # type: ignore[arg-type]
    if kind == "megatron":
        outputs.append(Value(fake_int8(a + b, amax[1]), name))  # type: ignore[arg-type]
    return outputs


def norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon) * gamma + beta
