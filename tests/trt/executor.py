# SPDX-License-Identifier: Apache-2.0
"""Executes a recorded network in NumPy, with TensorRT's rules for shapes and types.

Strongly typed networks are held to their types: operands of different types are an error, results are rounded to the type.
Weakly typed ones run as their builder flags allow: everything FP16 with FP16 set, convolutions with a range at their input in
INT8 with INT8 set (TensorRT may choose otherwise; this is the coarsest it may choose).
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from trt.attention_math import attention, softmax
from trt.number_types import FLOATS, Value, demand, fake_int8, rounded
from trt.plugin_math import run_plugin

sys.setrecursionlimit(10000)  # a network is as deep as its layers


class Executor:
    """Runs one network; `config` gives the flags of weakly typed ones, `sm` the GPU the plugins believe to be on."""

    def __init__(self, network: Any, config: Any, sm: int = 80) -> None:
        self.network, self.strong, self.sm = network, network.strong, sm
        self.flags = set() if self.strong else config.flags_set
        self.not_int8: list[str] = []  # convolutions that stay in floating point though INT8 is allowed
        self.folded: dict[int, Value] = {}  # layers fed by constants alone, computed once
        self.lock = threading.Lock()
        self.layers = self._in_order()
        self.last_use = self._last_uses()

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name; one call at a time."""
        with self.lock:
            return self._call(inputs)

    def _call(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.values: dict[int, Value] = {}
        for tensor in self.network.input_tensors:
            demand(tensor.name in inputs, f"input {tensor.name} missing")
            array = inputs[tensor.name]
            demand(len(array.shape) == len(tensor.shape), f"rank of {tensor.name}")
            demand(all(want in (-1, have) for want, have in zip(tensor.shape, array.shape, strict=True)), f"shape of {tensor.name}")
            self.values[id(tensor)] = Value(array.astype(np.int32), "INT32")
        for index, layer in enumerate(self.layers):
            self._run(layer)
            for tensor in self.last_use.get(index, ()):
                self.values.pop(tensor, None)
        return {tensor.props["name"]: self.values[id(tensor)].array for tensor in self.network.output_tensors}

    def _in_order(self) -> list[Any]:
        """Return the layers that outputs depend on, each behind those it reads: TensorRT does not care in which order they came."""
        order: list[Any] = []
        done: set[int] = set()

        def visit(layer: Any) -> None:
            if layer is None or id(layer) in done:
                return
            done.add(id(layer))
            for tensor in self._reads(layer):
                visit(tensor.layer)
            order.append(layer)

        for tensor in self.network.output_tensors:
            visit(tensor.layer)
        return order

    def _last_uses(self) -> dict[int, list[int]]:
        kept, seen, uses = {id(t) for t in self.network.output_tensors}, set(), {}
        for index in range(len(self.layers) - 1, -1, -1):
            for tensor in self._reads(self.layers[index]):
                if id(tensor) not in seen and id(tensor) not in kept:
                    seen.add(id(tensor))
                    uses.setdefault(index, []).append(id(tensor))
        return uses

    @staticmethod
    def _reads(layer: Any) -> list[Any]:
        extra = [value for value in layer.props.values() if hasattr(value, "do_set_dynamic_range")]
        return [*layer.inputs.values(), *extra]

    def _run(self, layer: Any) -> None:
        if id(layer) in self.folded:
            self._store(layer, [self.folded[id(layer)]])
            return
        inputs = [self.value(layer.inputs[i]) for i in sorted(layer.inputs)]
        function: Callable[..., Any] | None = getattr(self, "_" + layer.kind.removeprefix("add_"), None)
        demand(function is not None, f"no meaning for {layer.kind}")
        result = function(layer, *inputs)  # type: ignore[misc]
        results = result if isinstance(result, list) else [result]
        self._store(layer, results)
        constant = layer.kind == "add_constant" or (
            layer.kind in ("add_quantize", "add_dequantize", "add_cast")
            and all(t.layer is not None and id(t.layer) in self.folded for t in layer.inputs.values())
        )
        if constant:
            self.folded[id(layer)] = results[0]

    def _store(self, layer: Any, results: list[Value]) -> None:
        for index, value in enumerate(results):
            tensor = layer.do_get_output(index)
            range_ = tensor.props["dynamic_range"]
            if not self.strong and value.dtype in FLOATS:
                forced = layer.output_types.get(index)
                half = "FP16" in self.flags and (forced is None or forced.name == "HALF")
                value = Value(rounded(value.array, "HALF" if half else "FLOAT"), "FLOAT", mask_form=value.mask_form)
            if range_ is not None:
                value.amax = range_[1]
            self.values[id(tensor)] = value

    def value(self, tensor: Any) -> Value:
        demand(id(tensor) in self.values, f"{tensor.props['name']} is used before it is made")
        return self.values[id(tensor)]

    def _same(self, what: str, *values: Value) -> str:
        names = {value.dtype for value in values}
        demand(len(names) == 1, f"{what} of different types: {sorted(names)}")
        return names.pop()

    # layers -----------------------------------------------------------------------------------------------------------------

    def _constant(self, layer: Any) -> Value:
        weights, shape = layer.arguments["weights"], tuple(layer.arguments["shape"])
        array = np.array(weights.numpy()).reshape(-1)
        demand(array.size == math.prod(shape), f"constant of {array.size} for shape {shape}")
        return Value(rounded(array.reshape(shape), weights.dtype.name), weights.dtype.name)

    def _shuffle(self, layer: Any, x: Value, shape: Value | None = None) -> Value:
        props, array = layer.props, x.array
        if "first_transpose" in props:
            array = array.transpose(list(props["first_transpose"])[: array.ndim])
        if "reshape_dims" in props:
            sizes = [array.shape[i] if size == 0 else size for i, size in enumerate(int(s) for s in props["reshape_dims"])]
            array = array.reshape(sizes)
        if shape is not None:
            array = array.reshape(shape.array.tolist())
        if "second_transpose" in props:
            array = array.transpose(list(props["second_transpose"])[: array.ndim])
        return Value(np.ascontiguousarray(array), x.dtype)

    def _shape(self, layer: Any, x: Value) -> Value:
        return Value(np.array(x.array.shape, np.int64), "INT64")

    def _fill(self, layer: Any, count: Value, start: Value, step: Value) -> Value:
        demand(layer.arguments["op"].name == "LINSPACE" and count.dtype in ("INT64", "INT32"), "fill")
        kind = layer.arguments["output_type"].name
        demand(start.array.ndim == 0 and start.dtype == step.dtype == kind and step.array.shape == (1,), "fill start and step")
        return Value((start.array + step.array[0] * np.arange(count.array[0])).astype(np.int32), kind)

    def _slice(self, layer: Any, x: Value, size: Value) -> Value:
        starts, strides, sizes = layer.arguments["start"], layer.arguments["stride"], size.array.tolist()
        demand(len(sizes) == x.array.ndim, "slice rank")
        ends = [a + (n - 1) * s for a, n, s in zip(starts, sizes, strides, strict=True)]
        demand(all(end < have for end, have in zip(ends, x.array.shape, strict=True)), f"slice to {ends} of {x.array.shape}")
        return Value(x.array[tuple(slice(a, a + n * s, s) for a, n, s in zip(starts, sizes, strides, strict=True))], x.dtype)

    def _concatenation(self, layer: Any, *parts: Value) -> Value:
        return Value(np.concatenate([part.array for part in parts], layer.props["axis"]), self._same("concatenation", *parts))

    def _elementwise(self, layer: Any, a: Value, b: Value) -> Value:
        op = layer.arguments["op"].name
        demand(a.array.ndim == b.array.ndim, f"{op} of ranks {a.array.ndim} and {b.array.ndim}")
        kind = self._same(op, a, b)
        demand((kind == "BOOL") == (op in ("AND", "OR", "XOR")), f"{op} of {kind}")
        functions = {"SUM": np.add, "PROD": np.multiply, "SUB": np.subtract, "MIN": np.minimum, "MAX": np.maximum,
                     "AND": np.logical_and, "EQUAL": np.equal, "LESS": np.less, "DIV": np.divide}  # fmt: skip
        kind = "BOOL" if op in ("EQUAL", "LESS", "GREATER") else kind
        return Value(rounded(functions[op](a.array, b.array), kind), kind)

    def _cast(self, layer: Any, x: Value) -> Value:
        kind = layer.arguments["to_type"].name
        return Value(rounded(x.array, kind), kind)

    def _gather(self, layer: Any, data: Value, indices: Value) -> Value:
        demand(indices.dtype in ("INT32", "INT64"), "gather indices")
        axis, at = layer.arguments["axis"], indices.array
        inside = (at >= 0) & (at < data.array.shape[axis])
        result = np.take(data.array, np.where(inside, at, 0), axis)
        if not inside.all():  # TensorRT returns zeros
            result[(slice(None),) * axis + (~inside,)] = 0
        return Value(result, data.dtype)

    def _reduce(self, layer: Any, x: Value) -> Value:
        axes = tuple(i for i in range(x.array.ndim) if layer.arguments["axes"] >> i & 1)
        demand(layer.arguments["op"].name == "SUM" and x.dtype != "BOOL", "reduce")
        return Value(rounded(x.array.sum(axes, keepdims=layer.arguments["keep_dims"]), x.dtype), x.dtype)

    def _matrix_multiply(self, layer: Any, a: Value, b: Value) -> Value:
        ops = layer.arguments["op0"].name, layer.arguments["op1"].name
        demand(a.array.ndim == b.array.ndim, f"matrix product of ranks {a.array.ndim} and {b.array.ndim}")
        kind = self._same("matrix product", a, b)
        demand(kind in FLOATS, f"matrix product of {kind}")
        left, right = (np.swapaxes(v.array, -1, -2) if op == "TRANSPOSE" else v.array for v, op in zip((a, b), ops, strict=True))
        return Value(rounded(left @ (right[0] if right.ndim == 3 and right.shape[0] == 1 else right), kind), kind)

    def _convolution_nd(self, layer: Any, x: Value) -> Value:
        args = layer.arguments
        kernel, bias = (np.array(args[name].numpy(), np.float32) for name in ("kernel", "bias"))
        demand(tuple(args["kernel_shape"]) == (1, 1), "kernel shape")
        if self.strong:
            demand(args["kernel"].dtype.name == args["bias"].dtype.name == x.dtype, f"{layer.props['name']}: kernel and input type")
        channels = x.array.shape[-3]
        demand(x.array.ndim >= 4 and kernel.size == args["num_output_maps"] * channels, "kernel size")
        kernel, array = kernel.reshape(-1, channels), x.array
        if "INT8" in self.flags:
            kept = layer.props.get("precision")
            if x.amax is None or kept is not None:
                self.not_int8.append(layer.props["name"])
            else:
                array, kernel = fake_int8(array, x.amax), fake_int8(kernel, np.abs(kernel).max(1, keepdims=True))
        lanes = np.moveaxis(array, -3, -1)
        result = np.ascontiguousarray(lanes).reshape(-1, channels) @ kernel.T + bias  # one product, not one a position
        result = np.moveaxis(result.reshape(*lanes.shape[:-1], -1), -1, -3)
        return Value(rounded(result, x.dtype), x.dtype)

    def _activation(self, layer: Any, x: Value) -> Value:
        kind = layer.arguments["type"].name
        demand(kind in ("GELU_TANH", "GELU_ERF") and x.dtype in FLOATS, f"activation {kind} of {x.dtype}")
        if kind == "GELU_TANH":
            inner = math.sqrt(2 / math.pi) * (x.array + 0.044715 * x.array * x.array * x.array)
            result = 0.5 * x.array * (1 + np.tanh(inner))
        else:
            result = 0.5 * x.array * (1 + np.frompyfunc(math.erf, 1, 1)(x.array / math.sqrt(2)).astype(x.array.dtype))
        return Value(rounded(result, x.dtype), x.dtype)

    def _softmax(self, layer: Any, x: Value) -> Value:
        axis = int(layer.props["axes"]).bit_length() - 1
        demand(1 << axis == layer.props["axes"] and x.dtype in FLOATS, "softmax axes")
        return Value(rounded(softmax(x.array, axis), x.dtype), x.dtype)

    def _normalization_v2(self, layer: Any, x: Value, scale: Value, bias: Value) -> Value:
        demand(layer.arguments["axesMask"] == 1 << (x.array.ndim - 1), "normalisation axes")
        demand(scale.array.ndim == bias.array.ndim == x.array.ndim, "normalisation scale rank")
        kind = self._same("normalisation", x, scale, bias)
        epsilon = float(layer.props.get("epsilon", 1e-5))
        demand(kind == "FLOAT" or epsilon >= 1e-7, "epsilon underflows in 16 bits")
        centred = x.array - x.array.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        return Value(rounded(centred / np.sqrt(variance + epsilon) * scale.array + bias.array, kind), kind)

    _normalization = _normalization_v2

    def _quantize(self, layer: Any, x: Value, scale: Value) -> Value:
        kind = layer.arguments["output_type"].name
        demand(x.dtype in FLOATS and scale.dtype in ("FLOAT", x.dtype) and x.array.ndim > 0, f"quantize {x.dtype} by {scale.dtype}")
        demand(bool((scale.array > 0).all()), "scale must be positive")
        return Value(rounded(x.array / self._along(layer, scale, x), kind), kind)

    def _dequantize(self, layer: Any, x: Value, scale: Value) -> Value:
        kind = layer.arguments["output_type"].name
        demand(x.dtype in ("INT8", "FP8") and scale.dtype in ("FLOAT", kind), f"dequantize {x.dtype} by {scale.dtype} to {kind}")
        return Value(rounded(x.array * self._along(layer, scale, x), kind), kind)

    def _along(self, layer: Any, scale: Value, x: Value) -> np.ndarray:
        if scale.array.ndim == 0:
            return scale.array
        axis = layer.props["axis"]
        demand(scale.array.shape == (x.array.shape[axis],), f"{scale.array.shape} scales for axis {axis} of {x.array.shape}")
        return scale.array.reshape([-1 if i == axis else 1 for i in range(x.array.ndim)])

    def _attention(self, layer: Any, q: Value, k: Value, v: Value) -> Value:
        return attention(layer, q, k, v, self.value)

    _attention_v2 = _attention

    def _plugin_v2(self, layer: Any, *inputs: Value) -> list[Value]:
        outputs = [layer.do_get_output(i).props["dynamic_range"] for i in range(2)]
        return run_plugin(layer.arguments["plugin"], list(inputs), [r and r[1] for r in outputs], self.sm, self.strong)

    def _plugin_v3(self, layer: Any, *inputs: Value) -> list[Value]:
        demand(layer.arguments["shape_inputs"] == [], "the BERT plugins assert that there are no shape inputs")
        return self._plugin_v2(layer, *inputs)
