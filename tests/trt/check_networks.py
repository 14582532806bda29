# SPDX-License-Identifier: Apache-2.0
"""Every builder variant, recorded call by call and executed in NumPy, against the reference.

FP32 within 1e-4, FP16 within 1e-2 of the largest logit. INT8 twice: exactly (double precision, no roundings but those to INT8)
to 1e-6 against the reference that rounds at the same places, and as TensorRT runs it within the noise of eight bits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from helpers.batching import random_batch
from helpers.config import BertConfig
from helpers.errors import UsageError
from trt import double
from trt.harness import WEAK, Recorded, options
from trt.models import EVERYTHING_INT8, INT8_ATTENTION, INT8_PRODUCTS, easy_ranges, random_model, reference, relative_error, small
from trt.number_types import exact

H32, H64 = small(64, 2), small(128, 2)
ERF, WIDE = small(64, 2, activation="gelu_erf"), small(768, 12, inner=256)
ODD = small(48, 4)  # head size 12: neither the attention layer nor a fused plugin kernel takes it
LENGTHS = (40, 64, 17, 1)
TYPED, PACKED, V3, INT8 = {"no_plugins": True}, {"layout": "packed"}, {"v3_plugins": True}, {"int8": True}
HALF, LONG = {"fp16": True}, {"sequence_lengths": (128,)}
IMH, ILN, IL, MEGATRON = {"force_int8_multihead": True}, {"force_int8_skipln": True}, {"interleaved": True}, {"megatron": True}
SEVERAL = {"batch_sizes": (1, 4), "sequence_lengths": (16, 64)}
DEPRECATED = {"extra": {"deprecated_plugins": True}}

weak_only = pytest.mark.skipif(not WEAK, reason="implicit INT8 and plugins by default are TensorRT 10's")


def logits(config: BertConfig, **wanted: Any) -> tuple[Recorded, np.ndarray, np.ndarray]:
    megatron = bool(wanted.get("megatron"))
    weights = random_model(config, megatron)
    batch = random_batch(LENGTHS, config.vocab_size, 3)
    recorded = Recorded(config, weights, options(**wanted))
    return recorded, recorded(batch), reference(config, weights, megatron)(batch)


FLOATING = [
    # without plugins
    (H32, TYPED, "typed"),
    (H64, TYPED | SEVERAL, "typed"),
    (ERF, TYPED, "typed"),
    (ODD, TYPED, "typed"),
    (H32, TYPED | PACKED, "typed"),
    (H64, TYPED | PACKED | MEGATRON, "typed"),
    (H32, TYPED | HALF, "typed"),
    (H64, TYPED | HALF | SEVERAL, "typed"),
    (ODD, TYPED | HALF, "typed"),
    (H64, TYPED | PACKED | HALF, "typed"),
    (ODD, TYPED | PACKED | HALF, "typed"),
    (H64, TYPED | PACKED | HALF | MEGATRON, "typed"),
    (H32, {"fp16": True, "batch_sizes": (2, 8), "distributive_independence": True, "no_plugins": True}, "typed"),
    # plugins asked for by name: both versions have them
    (H32, DEPRECATED, "plugins"),
    (H64, V3, "plugins"),
    (H64, DEPRECATED | HALF, "plugins"),
    (H64, V3 | HALF, "plugins"),
    (H32, V3 | HALF | {"sequence_lengths": (72,)}, "plugins"),
    (ERF, V3 | SEVERAL, "plugins"),
    (H64, DEPRECATED | PACKED | HALF, "plugins"),
    (H64, V3 | PACKED | HALF, "plugins"),
    # the defaults of each version
    (H64, HALF, "plugins" if WEAK else "typed"),
    (H32, PACKED, "typed"),
]


@pytest.mark.parametrize(("config", "wanted", "kind"), FLOATING, ids=str)
def check_floating_point(config: BertConfig, wanted: dict[str, Any], kind: str) -> None:
    recorded, found, expected = logits(config, **wanted)
    assert recorded.kind == kind
    assert relative_error(found, expected) <= (1e-2 if wanted.get("fp16") else 1e-4)


@pytest.mark.parametrize("wanted", [TYPED, TYPED | PACKED], ids=str)
def check_bf16(wanted: dict[str, Any]) -> None:
    _, found, expected = logits(H64, bf16=True, **wanted)
    assert relative_error(found, expected) <= 5e-2  # 8 bits of mantissa


@pytest.mark.parametrize("wanted", [{}, HALF, HALF | IMH, PACKED | HALF, {"bf16": True}], ids=str)
def check_fp8(wanted: dict[str, Any]) -> None:
    _, found, expected = logits(H64, fp8=True, **wanted)
    assert rms(found, expected) <= 0.15  # 3 bits of mantissa


# INT8: variant, what the reference must round
TYPED_INT8 = [
    (H64, TYPED | INT8, INT8_PRODUCTS),
    (H64, TYPED | INT8 | PACKED, INT8_PRODUCTS),
    (H64, TYPED | INT8 | SEVERAL, INT8_PRODUCTS),
    (H64, TYPED | INT8 | PACKED | MEGATRON, INT8_PRODUCTS),
]
PLUGIN_INT8 = [
    (H32, INT8, INT8_PRODUCTS),
    (H64, INT8 | V3 | {"batch_sizes": (1, 4)}, INT8_PRODUCTS),
    (H64, INT8 | IMH | LONG, INT8_PRODUCTS + INT8_ATTENTION),
    (H64, INT8 | IMH | LONG | V3, INT8_PRODUCTS + INT8_ATTENTION),
    (H64, INT8 | PACKED, INT8_PRODUCTS + INT8_ATTENTION),
    (WIDE, INT8 | IMH | ILN | LONG, EVERYTHING_INT8),
    (WIDE, INT8 | PACKED, EVERYTHING_INT8),
    (WIDE, INT8 | PACKED | IL, EVERYTHING_INT8),
    (WIDE, INT8 | PACKED | IL | V3, EVERYTHING_INT8),
    (WIDE, INT8 | PACKED | IL | MEGATRON, EVERYTHING_INT8),
    (WIDE, INT8 | PACKED | IL | MEGATRON | V3, EVERYTHING_INT8),
]


def exact_error(config: BertConfig, wanted: dict[str, Any], rounded: tuple[str, ...], kind: str) -> float:
    megatron = bool(wanted.get("megatron"))
    weights = easy_ranges(config, random_model(config, megatron), megatron)
    batch = random_batch(LENGTHS, config.vocab_size, 3)
    recorded = Recorded(config, weights, options(**wanted))
    assert recorded.kind == kind
    with exact():
        found = recorded(batch)
        if kind == "plugins":
            assert recorded.execute.not_int8 == ["squad_output"], "a product lost its INT8 input"
    trained = kind == "typed"  # implicit INT8 finds the kernels' ranges itself
    return relative_error(found, reference(config, weights, megatron, rounded, np.float64, trained)(batch))


@pytest.mark.parametrize(("config", "wanted", "rounded"), TYPED_INT8, ids=str)
def check_typed_int8_exactly(config: BertConfig, wanted: dict[str, Any], rounded: tuple[str, ...]) -> None:
    assert exact_error(config, wanted, rounded, "typed") <= 1e-6


@weak_only
@pytest.mark.parametrize(("config", "wanted", "rounded"), PLUGIN_INT8, ids=str)
def check_plugin_int8_exactly(config: BertConfig, wanted: dict[str, Any], rounded: tuple[str, ...]) -> None:
    assert exact_error(config, wanted, rounded, "plugins") <= 1e-6


@pytest.mark.parametrize("wanted", [TYPED | IMH, TYPED | IMH | PACKED, TYPED, LONG | IMH, PACKED], ids=str)
def check_int8_with_fp16(wanted: dict[str, Any]) -> None:
    _, found, expected = logits(H64, int8=True, fp16=True, **wanted)
    assert rms(found, expected) <= 0.12  # two random layers: six products and two attentions of eight bits each


@pytest.mark.parametrize("wanted", [TYPED | INT8, INT8], ids=str)
def check_fc2_gemm_keeps_one_product_floating(wanted: dict[str, Any]) -> None:
    weights = easy_ranges(H64, random_model(H64))
    inputs = tuple(name for name in INT8_PRODUCTS if name != "output_dense_input" and "_output_dense" not in name) + (
        "attention_output_dense_input",
    )
    batch = random_batch(LENGTHS, H64.vocab_size, 3)
    recorded = Recorded(H64, weights, options(force_fc2_gemm=True, **wanted))
    with exact():
        found = recorded(batch)
    oracle = reference(
        H64,
        weights,
        False,
        inputs,
        np.float64,
        recorded.kind == "typed",
        lambda name: "_output_dense" not in name or "attention" in name,
    )
    oracle.ranges = {name: amax for name, amax in oracle.ranges.items() if not name.endswith("1_output_dense_input_amax")}
    assert relative_error(found, oracle(batch)) <= 1e-6


@weak_only
def check_int8_outputs_enter_float_norms_as_floats() -> None:
    """Without -iln the results of two products per layer are forced to 16 or 32 bits, as the skip-layer-norm reads them."""
    for half, name in ((True, "HALF"), (False, "FLOAT")):
        recorded, _, _ = logits(H64, int8=True, fp16=half, sequence_lengths=(128,))
        forced = {layer.props["name"]: layer.output_types[0].name for layer in recorded.graph.network.layers if layer.output_types}
        wanted = {f"l{i}_{product}" for i in range(2) for product in ("attention_output_dense", "output_dense")} | {"squad_output"}
        assert forced == dict.fromkeys(wanted, name)


@pytest.mark.parametrize("wanted", [TYPED | PACKED, TYPED | HALF], ids=str)
def check_epsilon(wanted: dict[str, Any]) -> None:
    """BERT's 1e-12, not the layer's default 1e-5: too small a difference for the logits of a random model to show."""
    recorded, _, _ = logits(H64, **wanted)
    found = [layer.props["epsilon"] for layer in recorded.graph.network.layers if "normalization" in layer.kind]
    assert found == [H64.layer_norm_eps] * 5


@pytest.mark.parametrize("wanted", [TYPED | HALF, TYPED | PACKED | HALF, TYPED | INT8 | HALF | IMH], ids=str)
def check_versions_before_the_attention_layer(wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 10.0 to 10.13 have no attention layer, those before 10.15 no second form of the normalization layer."""
    older = {f"INetworkDefinition.{name}" for name in ("add_attention", "add_attention_v2", "add_normalization_v2")}
    monkeypatch.setattr(double, "HIDDEN", older)
    recorded, found, expected = logits(H64, **wanted)
    kinds = {layer.kind for layer in recorded.graph.network.layers}
    assert "add_softmax" in kinds
    assert "add_normalization" in kinds
    assert rms(found, expected) <= (0.12 if wanted.get("int8") else 1e-2)


def check_missing_range_is_named() -> None:
    weights = dataclasses.replace(random_model(H64), ranges={})
    with pytest.raises(Exception, match="no activation range l0_attention_self_query_input_amax.*calibrate"):
        Recorded(H64, weights, options(int8=True))


@pytest.mark.parametrize("lengths", [(128,), (384,)], ids=str)
def check_plugin_limits_are_met_by_the_double(lengths: tuple[int, ...]) -> None:
    """The executor refuses what choice.py must never let through: here it is let through on purpose."""
    from trt.plugin_math import WrongResult

    with pytest.raises(UsageError, match="head size 64"):
        Recorded(H32, random_model(H32), options(fp16=True, sequence_lengths=lengths, **V3))
    recorded = Recorded(H32, random_model(H32), options(fp16=True, batch_sizes=(2,), sequence_lengths=lengths, **V3), sm=61)
    recorded.execute.sm = 80
    with pytest.raises(WrongResult, match="wants the mask as index"):
        recorded(random_batch([40, 64], H32.vocab_size))


def rms(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the root of the mean squared difference over the spread of the logits."""
    return float(np.sqrt(np.square(found - wanted).mean()) / wanted.std())
