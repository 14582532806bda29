# SPDX-License-Identifier: Apache-2.0
"""A network under construction: layers with names, constants that stay alive, and the differences between TensorRT 10 and 11.

Both network builders write in terms of it; it knows nothing of BERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from helpers.backends.trt import api
from helpers.errors import BertError

Tensor = Any  # tensorrt.ITensor
Sizes = Sequence[int]


class Graph:
    """Wraps an INetworkDefinition; every method adds one layer and returns its (first) output tensor."""

    def __init__(self, trt: Any, network: Any, kernel_type: type = np.float32) -> None:
        self.trt, self.network = trt, network
        self.kernel_type = kernel_type  # of convolution weights: strong typing wants the type of the input
        self._arrays: list[np.ndarray] = []  # TensorRT reads weights at build time, without copying them

    # inputs and constants ---------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[int]) -> Tensor:
        """Add an INT32 input; -1 marks a dynamic axis."""
        return api.made(self.network.add_input(name, self.trt.int32, tuple(shape)), f"the input {name}")

    def weights(self, array: np.ndarray) -> Any:
        """Return TensorRT weights over an array that lives as long as this graph."""
        array = np.ascontiguousarray(array)
        self._arrays.append(array)
        return self.trt.Weights(array)

    def constant(self, array: np.ndarray, dtype: Any = None, name: str = "") -> Tensor:
        """Add a constant of a type: by default the array's own. NumPy has no BF16, so that one is stored in FP32 and cast."""
        trt = self.trt
        if dtype == trt.DataType.HALF:
            array = array.astype(np.float16)
        shape = array.shape
        layer = api.made(self.network.add_constant(shape, self.weights(array)), f"the constant {name}")
        tensor = self._named(layer, name)
        return self.cast(tensor, dtype) if dtype == trt.DataType.BF16 else tensor

    # shapes -----------------------------------------------------------------------------------------------------------------

    def shuffle(self, x: Tensor, first: Sizes | None = None, reshape: Sizes | None = None, second: Sizes | None = None) -> Tensor:
        """Transpose, reshape (0 keeps an axis, -1 is what remains), transpose."""
        layer = api.made(self.network.add_shuffle(x), "a shuffle layer")
        if first is not None:
            layer.first_transpose = self.trt.Permutation(list(first))
        if reshape is not None:
            layer.reshape_dims = self.trt.Dims(list(reshape))
        if second is not None:
            layer.second_transpose = self.trt.Permutation(list(second))
        return layer.get_output(0)

    def shape(self, x: Tensor) -> Tensor:
        """Return the shape of a tensor: INT64 (rank,)."""
        return api.made(self.network.add_shape(x), "a shape layer").get_output(0)

    def size(self, x: Tensor, axis: int) -> Tensor:
        """Return one size of a tensor: INT64 (1,)."""
        return self.gather(self.shape(x), self.constant(np.array([axis], np.int32)), 0)

    def arange(self, count: Tensor) -> Tensor:
        """Return 0, 1, 2 ... as INT32 (count,); count is INT64 (1,)."""
        trt = self.trt
        layer = api.made(self.network.add_fill(trt.Dims([1]), trt.FillOperation.LINSPACE, trt.DataType.INT32), "a fill layer")
        layer.set_input(0, count)
        layer.set_input(1, self.constant(np.array(0, np.int32)))
        layer.set_input(2, self.constant(np.array([1], np.int32)))
        return layer.get_output(0)

    def slice_to(self, x: Tensor, shape: Tensor, start: Sequence[int], stride: Sequence[int]) -> Tensor:
        """Cut x to a size known only when the engine runs: INT64 (rank,)."""
        dims = self.trt.Dims(list(start))
        layer = api.made(self.network.add_slice(x, dims, dims, self.trt.Dims(list(stride))), "a slice layer")
        layer.set_input(2, shape)
        return layer.get_output(0)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenate along axis 0."""
        layer = api.made(self.network.add_concatenation(list(parts)), "a concatenation")
        layer.axis = 0
        return layer.get_output(0)

    # arithmetic -------------------------------------------------------------------------------------------------------------

    def elementwise(self, a: Tensor, b: Tensor, operation: str) -> Tensor:
        """SUM, PROD, SUB, EQUAL, LESS, AND ... of two tensors of one type and rank."""
        op = getattr(self.trt.ElementWiseOperation, operation)
        return api.made(self.network.add_elementwise(a, b, op), f"an elementwise {operation}").get_output(0)

    def cast(self, x: Tensor, dtype: Any) -> Tensor:
        return api.made(self.network.add_cast(x, dtype), f"a cast to {dtype}").get_output(0)

    def gather(self, data: Tensor, indices: Tensor, axis: int) -> Tensor:
        return api.made(self.network.add_gather(data, indices, axis), "a gather layer").get_output(0)

    def reduce_sum(self, x: Tensor, axis: int) -> Tensor:
        """Sum over one axis, which disappears."""
        layer = self.network.add_reduce(x, self.trt.ReduceOperation.SUM, 1 << axis, False)
        return api.made(layer, "a reduction").get_output(0)

    def matmul(self, a: Tensor, b: Tensor, transpose_b: bool = False) -> Tensor:
        op = self.trt.MatrixOperation
        layer = self.network.add_matrix_multiply(a, op.NONE, b, op.TRANSPOSE if transpose_b else op.NONE)
        return api.made(layer, "a matrix product").get_output(0)

    def convolution(self, x: Tensor, kernel: np.ndarray, bias: np.ndarray, name: str) -> Any:
        """Add a 1x1 convolution with kernel (out, in); return the layer, whose types the caller may steer."""
        weights, bias_weights = self.weights(kernel.astype(self.kernel_type)), self.weights(bias.astype(self.kernel_type))
        layer = self.network.add_convolution_nd(x, kernel.shape[0], (1, 1), weights, bias_weights)
        self._named(api.made(layer, f"the convolution {name}"), name)
        return layer

    def activation(self, x: Tensor, kind: str, name: str) -> Tensor:
        """GELU_TANH or GELU_ERF."""
        layer = api.made(self.network.add_activation(x, getattr(self.trt.ActivationType, kind)), f"the activation {kind}")
        return self._named(layer, name)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        layer = api.made(self.network.add_softmax(x), "a softmax")
        layer.axes = 1 << axis
        return layer.get_output(0)

    def layer_norm(self, x: Tensor, gamma: np.ndarray, beta: np.ndarray, epsilon: float, rank: int, name: str) -> Tensor:
        """Normalise FP32 x over its last axis; gamma and beta (hidden,) are given the same rank, as the layer demands."""
        shape = (1,) * (rank - 1) + gamma.shape
        scale, shift = self.constant(gamma.reshape(shape)), self.constant(beta.reshape(shape))
        # add_normalization_v2 appeared in 10.15; for one group over the last axis the older call means the same.
        add = getattr(self.network, "add_normalization_v2", None) or self.network.add_normalization
        layer = api.made(add(x, scale, shift, 1 << (rank - 1)), f"the layer norm {name}")
        layer.epsilon = epsilon
        return self._named(layer, name)

    def quantize(self, x: Tensor, scale: Tensor, dtype: Any, axis: int | None = None) -> Tensor:
        layer = api.made(self.network.add_quantize(x, scale, dtype), "a quantize layer")
        if axis is not None:
            layer.axis = axis
        return layer.get_output(0)

    def dequantize(self, x: Tensor, scale: Tensor, dtype: Any, axis: int | None = None) -> Tensor:
        layer = api.made(self.network.add_dequantize(x, scale, dtype), "a dequantize layer")
        if axis is not None:
            layer.axis = axis
        return layer.get_output(0)

    # results ----------------------------------------------------------------------------------------------------------------

    def output(self, x: Tensor, name: str) -> None:
        x.name = name
        self.network.mark_output(x)

    def set_range(self, x: Tensor, amax: float) -> None:
        """Set the symmetric INT8 range of a tensor (TensorRT 10, weak typing)."""
        if not x.set_dynamic_range(-amax, amax):
            raise BertError(f"TensorRT refused the INT8 range ±{amax:g} of {x.name}; check the ranges of the weights")

    @staticmethod
    def _named(layer: Any, name: str) -> Tensor:
        tensor = layer.get_output(0)
        if name:
            layer.name = tensor.name = name
        return tensor
