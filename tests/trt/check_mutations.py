# SPDX-License-Identifier: Apache-2.0
"""Mistakes planted in the TensorRT backend on purpose: each must make the check that guards it fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.backends.trt import attention, engine_builder, plugin_network, plugins, typed_network
from helpers.backends.trt.graph import Graph
from trt import check_networks as networks
from trt.check_networks import H64, HALF, IL, ILN, IMH, INT8, LONG, PACKED, TYPED, V3, WIDE
from trt.harness import TRT, WEAK
from trt.models import EVERYTHING_INT8

Patch = pytest.MonkeyPatch
PLUGINS = {"extra": {"deprecated_plugins": True}}


def floating(wanted: dict[str, Any], kind: str, config: Any = H64) -> Callable[[], None]:
    return lambda: networks.check_floating_point(config, wanted, kind)


def exact_int8(wanted: dict[str, Any]) -> Callable[[], None]:
    return lambda: networks.check_plugin_int8_exactly(WIDE, wanted, EVERYTHING_INT8)


def wrap(patch: Patch, where: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace where.name by change(original, *arguments)."""
    original = getattr(where, name)
    patch.setattr(where, name, lambda *args, **kwargs: change(original, *args, **kwargs))


# the mistakes ---------------------------------------------------------------------------------------------------------------


def qkv_order(patch: Patch) -> None:
    """All queries, keys, values where the plugin wants them head by head, and the reverse for the interleaved one."""

    def swapped(pack: Any, self: Any, p: str, what: str) -> np.ndarray:
        self.interleaved = not self.interleaved
        try:
            return pack(self, p, what)  # type: ignore[no-any-return]
        finally:
            self.interleaved = not self.interleaved

    wrap(patch, plugin_network.PluginNetwork, "_pack_qkv", swapped)


def query_and_value_swapped(patch: Patch) -> None:
    swap = {"attention_self_query": "attention_self_value", "attention_self_value": "attention_self_query"}

    def linear(original: Any, self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        layer, _, product = name.partition("_")
        return original(self, f"{layer}_{swap.get(product, product)}", *args, **kwargs)

    wrap(patch, typed_network.TypedNetwork, "_linear", linear)


def mask_dropped(patch: Patch) -> None:
    """Every key may be attended to."""
    wrap(patch, attention, "Heads", lambda make, net, config, real, like: make(net, config, all_true(net, like), like))

    def without(original: Any, self: Any, kind: str, inputs: Any, *args: Any) -> Any:
        g = self.graph
        ones = g.cast(g.elementwise(inputs[2], inputs[2], "EQUAL"), g.trt.DataType.INT32)
        return original(self, kind, [*inputs[:2], ones], *args)

    wrap(patch, plugins.Plugins, "embeddings", without)


def all_true(net: Any, like: Any) -> Any:
    return net.graph.elementwise(like, like, "EQUAL")


def weight_transposed(patch: Patch) -> None:
    def transposed(original: Any, self: Any, x: Any, kernel: np.ndarray, *args: Any) -> Any:
        square = kernel.shape[0] == kernel.shape[1]
        return original(self, x, kernel.T if square else kernel, *args)

    wrap(patch, Graph, "convolution", transposed)

    def build(original: Any, self: Any, *args: Any) -> None:
        tensors = {
            name: array.T if name.endswith("attention_output_dense_kernel") else array
            for name, array in self.weights.tensors.items()
        }
        self.weights = type(self.weights)(tensors, self.weights.ranges, self.weights.source)
        original(self, *args)

    wrap(patch, typed_network.TypedNetwork, "build", build)


def scale_forgotten(patch: Patch) -> None:
    wrap(
        patch,
        typed_network.TypedNetwork,
        "_linear",
        lambda f, self, name, x, factor=1.0, quantise=True: f(self, name, x, 1.0, quantise),
    )


def other_gelu(patch: Patch) -> None:
    other = {"GELU_TANH": "GELU_ERF", "GELU_ERF": "GELU_TANH"}
    wrap(patch, Graph, "activation", lambda f, self, x, kind, name: f(self, x, other[kind], name))


def default_epsilon(patch: Patch) -> None:
    wrap(patch, Graph, "layer_norm", lambda f, self, x, gamma, beta, epsilon, *rest: f(self, x, gamma, beta, 1e-5, *rest))


def types_mixed(patch: Patch) -> None:
    wrap(patch, typed_network.TypedNetwork, "_row", lambda f, self, array, dtype=None: f(self, array, None))


def ids_and_segments_swapped(patch: Patch) -> None:
    wrap(
        patch,
        plugins.Plugins,
        "embeddings",
        lambda f, self, kind, inputs, *rest: f(self, kind, [inputs[1], inputs[0], *inputs[2:]], *rest),
    )


def starts_and_ends_swapped(patch: Patch) -> None:
    for network in (plugin_network, typed_network):
        wrap_weights(patch, network)


def wrap_weights(patch: Patch, network: Any) -> None:
    cls = network.PluginNetwork if network is plugin_network else network.TypedNetwork

    def build(original: Any, self: Any, *args: Any) -> None:
        tensors = {name: array[::-1] if name.startswith("cls_squad") else array for name, array in self.weights.tensors.items()}
        self.weights = type(self.weights)(tensors, self.weights.ranges, self.weights.source)
        original(self, *args)

    wrap(patch, cls, "build", build)


def positions_run_on(patch: Patch) -> None:
    """Positions do not start anew with each packed sequence."""

    def run_on(original: Any, self: Any, table: np.ndarray) -> Any:
        self.position = self.graph.arange(self.graph.size(self.ids, 0))
        return original(self, table)

    wrap(patch, attention.Packed, "position_embeddings", run_on)


def other_mask_type(patch: Patch) -> None:
    wrap(
        patch,
        plugins.Plugins,
        "embeddings",
        lambda f, self, kind, inputs, weights, half, type_id: f(self, kind, inputs, weights, half, 0),
    )


def probabilities_unscaled(patch: Patch) -> None:
    def unscaled(
        original: Any, self: Any, kind: str, inputs: Any, heads: int, hidden: int, type_id: int, scale: float, name: str
    ) -> Any:
        return original(self, kind, inputs, heads, hidden, type_id, scale and scale * 127, name)

    wrap(patch, plugins.Plugins, "attention", unscaled)


def ranges_exchanged(patch: Patch) -> None:
    """The range of the GELU output on the second product's output, and the reverse."""
    other = {"output_dense_input_amax": "output_add_local_input_quantizer_amax"}
    other |= {value: key for key, value in other.items()}

    def exchanged(original: Any, self: Any, x: Any, source: Any) -> None:
        layer, _, name = str(source).partition("_")
        original(self, x, f"{layer}_{other[name]}" if name in other else source)

    wrap(patch, plugin_network.PluginNetwork, "_range", exchanged)


def range_forgotten(patch: Patch) -> None:
    def forget(original: Any, self: Any, x: Any, source: Any) -> None:
        if not str(source).endswith("intermediate_dense_input_amax"):
            original(self, x, source)

    wrap(patch, plugin_network.PluginNetwork, "_range", forget)


def fields_not_kept(patch: Patch) -> None:
    """A field that the creator does not know, as a misspelt one would be."""
    wrap(patch, plugins, "integer", lambda f, value: f(value).astype(np.float32))


def flag_of_ten(patch: Patch) -> None:
    wrap(patch, engine_builder, "define", lambda f, trt, *rest: (trt.BuilderFlag.FP16, f(trt, *rest))[1])


def two_argument_quantize(patch: Patch) -> None:
    patch.setattr(Graph, "quantize", lambda self, x, scale, dtype, axis=None: self.network.add_quantize(x, scale).get_output(0))


def output_type_of_ten(patch: Patch) -> None:
    def activation(original: Any, self: Any, x: Any, kind: str, name: str) -> Any:
        x.layer.set_output_type(0, self.trt.DataType.FLOAT)
        return original(self, x, kind, name)

    wrap(patch, Graph, "activation", activation)


def creator_of_ten(patch: Patch) -> None:
    patch.setattr(
        plugins.api, "plugin_creator", lambda trt, name, version: trt.get_plugin_registry().get_plugin_creator(name, version, "")
    )


def argument_misspelt(patch: Patch) -> None:
    patch.setattr(Graph, "cast", lambda self, x, dtype: self.network.add_cast(x, dtype=dtype).get_output(0))


def attention_of_eleven(patch: Patch) -> None:
    """The call of TensorRT 11 alone."""

    def layer(g: Graph, q: Any, k: Any, v: Any, name: str) -> Any:
        return g.network.add_attention_v2(q, k, v, g.trt.AttentionNormalizationOp.SOFTMAX, g.trt.CausalMaskKind.NONE)

    patch.setattr(attention, "attention_layer", layer)


TYPED32, TYPED16, PACKED16 = floating(TYPED, "typed"), floating(TYPED | HALF, "typed"), floating(TYPED | PACKED | HALF, "typed")
MUTATIONS: list[tuple[Callable[[Patch], None], Callable[[], None], bool | None]] = [
    # mistake, check, version it is one on: True TensorRT 10, False 11, None both
    (qkv_order, floating(PLUGINS, "plugins"), None),
    (qkv_order, exact_int8(INT8 | PACKED | IL), True),
    (query_and_value_swapped, TYPED32, None),
    (mask_dropped, TYPED32, None),
    (mask_dropped, TYPED16, None),
    (mask_dropped, floating(PLUGINS, "plugins"), None),
    (weight_transposed, TYPED32, None),
    (weight_transposed, floating(PLUGINS, "plugins"), None),
    (scale_forgotten, TYPED32, None),
    (other_gelu, TYPED32, None),
    (other_gelu, floating(PLUGINS, "plugins"), None),
    (default_epsilon, lambda: networks.check_epsilon(TYPED), None),
    (types_mixed, TYPED16, None),
    (ids_and_segments_swapped, floating(PLUGINS, "plugins"), None),
    (starts_and_ends_swapped, TYPED32, None),
    (starts_and_ends_swapped, floating(V3 | PACKED | HALF, "plugins"), None),
    (positions_run_on, PACKED16, None),
    (other_mask_type, floating(V3 | HALF, "plugins"), None),
    (probabilities_unscaled, exact_int8(INT8 | PACKED | IL), True),
    (ranges_exchanged, exact_int8(INT8 | IMH | ILN | LONG), True),
    (range_forgotten, exact_int8(INT8 | IMH | ILN | LONG), True),
    (fields_not_kept, floating(V3, "plugins"), None),
    (flag_of_ten, TYPED32, False),
    (two_argument_quantize, lambda: networks.check_int8_with_fp16(TYPED), False),
    (output_type_of_ten, TYPED32, False),
    (creator_of_ten, floating(PLUGINS, "plugins"), False),
    (argument_misspelt, TYPED16, None),
    (attention_of_eleven, TYPED16, True),
]


@pytest.mark.parametrize(("mistake", "check", "version"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def check_mistake_makes_the_check_fail(mistake: Any, check: Any, version: bool | None, monkeypatch: Patch) -> None:
    if version is not None and version != WEAK:
        pytest.skip(f"no mistake on TensorRT {TRT.__version__}")
    check()
    mistake(monkeypatch)
    with pytest.raises(BaseException) as caught:  # noqa: B017 - plugin assertions are no Exceptions
        check()
    assert not isinstance(caught.value, NotImplementedError), "the double does not know this call: nothing is proved"
    print(f"{mistake.__name__}: {type(caught.value).__name__}: {str(caught.value).splitlines()[0][:120]}")
