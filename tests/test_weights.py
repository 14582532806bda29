# SPDX-License-Identifier: Apache-2.0
"""One set of names whatever the source, every fault named, and nothing in a file ever executed."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from conftest import ONNX
from helpers.errors import InputError
from helpers.weights import onnx_model, pytorch, random_weights, torch_file
from helpers.weights.names import activation_ranges, expected_shapes
from helpers.weights.state_dict import canonical, weights_from_names
from names import EXPECTED, TINY, assert_same, huggingface_names

DATA = Path(__file__).parent / "data"


def write_onnx(path: Path, arrays: dict[str, np.ndarray], data_type: int | None = None, nodes: tuple = ()) -> Path:
    """Write an ONNX file that has nothing but initializers (and the nodes given)."""
    import onnx

    initializers = []
    for name, array in arrays.items():
        if data_type is None or array.dtype.kind != "f":
            initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        else:
            initializers.append(onnx.helper.make_tensor(name, data_type, array.shape, array.ravel()))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(list(nodes), "g", [], [], initializers)), path)
    return path


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("bert.encoder.layer.0.attention.self.query.weight", "l0_attention_self_query_kernel"),
        ("bert.encoder.layer.11.attention.self.key.bias", "l11_attention_self_key_bias"),
        ("bert.encoder.layer.0.attention.self.query._input_quantizer._amax", "l0_attention_self_query_input_amax"),
        ("bert.encoder.layer.0.attention.self.query._weight_quantizer._amax", "l0_attention_self_query_kernel_amax"),
        ("bert.encoder.layer.0.attention.self.qv_a_input_quantizer._amax", "l0_attention_self_qv_a_input_quantizer_amax"),
        ("bert.encoder.layer.0.attention.self.matmul_q_input_quantizer._amax", "l0_attention_self_qv_a_input_quantizer_amax"),
        ("bert.encoder.layer.0.attention.self.matmul_a_input_quantizer._amax", "l0_attention_self_av_a_input_quantizer_amax"),
        (
            "bert.encoder.layer.0.attention.output.add_local_input_quantizer._amax",
            "l0_attention_output_add_local_input_quantizer_amax",
        ),
        ("bert.encoder.layer.0.attention.output.LayerNorm.weight", "l0_attention_output_layernorm_gamma"),
        ("bert.encoder.layer.0.intermediate.dense_act.weight", "l0_intermediate_dense_kernel"),
        ("bert.encoder.layer.0.output.dense._input_quantizer._amax", "l0_output_dense_input_amax"),
        ("bert.encoder.final_input_quantizer._amax", "bert_encoder_final_input_quantizer_amax"),
        ("bert.embeddings.LayerNorm.gamma", "bert_embeddings_layernorm_gamma"),
        ("bert.embedding.tokentype_embeddings.weight", "bert_embeddings_token_type_embeddings"),
        ("bert.encoder.layers.3.attention.query_key_value.weight", "l3_attention_self_qkv_kernel"),
        ("bert.encoder.layers.3.attention.av_b_input_quantizer._amax", "l3_attention_self_av_b_input_quantizer_amax"),
        ("module.bert.embeddings.word_embeddings.weight", "bert_embeddings_word_embeddings"),
        ("qa_outputs.weight", "cls_squad_output_weights"),
        ("squad.qa_outputs.bias", "cls_squad_output_bias"),
        ("bert.pooler.dense.weight", None),
        ("bert.embeddings.position_ids", None),
        ("bert.embeddings.word_embeddings._weight_quantizer._amax", None),
        ("qa_outputs._input_quantizer._amax", None),
        ("bert.encoder.layer.0.output.dense.weight_mask", None),
    ],
)
def test_names(given: str, ours: str | None) -> None:
    assert canonical(given) == ours


@pytest.mark.parametrize("name", ["qa_outputs.lora_A.weight", "qa_outputs_old.weight", "qa_outputs.original_module.bias"])
def test_names_beside_the_head_are_not_the_head(name: str) -> None:
    with pytest.raises(KeyError):
        canonical(name)


FUSED = "bert.encoder.layers.0.attention.query_key_value.weight"


@pytest.mark.parametrize(
    ("second", "shape", "ours", "first"),
    [
        ("model.qa_outputs.weight", (2, 8), "cls_squad_output_weights", "qa_outputs.weight"),
        (
            "module.bert.embeddings.word_embeddings.weight",
            (12, 8),
            "bert_embeddings_word_embeddings",
            "bert.embeddings.word_embeddings.weight",
        ),
        (FUSED, (24, 8), "l0_attention_self_query_kernel", "bert.encoder.layer.0.attention.self.query.weight"),
    ],
)
def test_two_tensors_of_one_name_that_differ_are_refused(second: str, shape: tuple[int, ...], ours: str, first: str) -> None:
    arrays = huggingface_names(TINY, EXPECTED.tensors)
    with pytest.raises(
        InputError, match=f"a test has two different tensors for {ours}, {first} and {second}; give a file with one"
    ):
        weights_from_names(TINY, arrays | {second: np.zeros(shape, np.float32)}, "a test")


def test_two_equal_tensors_of_one_name_are_one() -> None:
    arrays = huggingface_names(TINY, EXPECTED.tensors)
    assert_same(weights_from_names(TINY, arrays | {f"module.{name}": array for name, array in arrays.items()}, "a test"))


def test_the_repositorys_model_has_every_tensor_and_range(config, weights) -> None:
    assert set(weights.tensors) == set(expected_shapes(config))
    assert set(activation_ranges(config)) <= set(weights.ranges)
    assert weights.ranges["l0_intermediate_dense_kernel_amax"].shape == (1536,)
    assert weights.range("l0_attention_self_query_input_amax") == pytest.approx(7.128639)


# --- ONNX -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "limit"), [(1, 0.0), (10, 1e-3), (11, 0.0), (16, 1e-2)], ids=["fp32", "fp16", "fp64", "bf16"])
def test_onnx_of_any_float_type(tmp_path, kind: int, limit: float) -> None:
    assert_same(onnx_model.read(TINY, write_onnx(tmp_path / "m.onnx", huggingface_names(TINY, EXPECTED.tensors), kind)), limit)


def test_onnx_with_folded_and_renamed_products(tmp_path) -> None:
    """Newer exporters transpose a product's matrix and call it onnx::MatMul_N; the node keeps the module's name."""
    import onnx

    arrays = huggingface_names(TINY, EXPECTED.tensors)
    nodes = []
    for number, name in enumerate(
        [n for n in arrays if n.startswith("bert.encoder") and n.endswith("weight") and arrays[n].ndim == 2]
    ):
        arrays[f"onnx::MatMul_{number}"] = arrays.pop(name).T
        path = "/" + name.removesuffix(".weight").replace(".", "/") + "/MatMul"
        nodes.append(onnx.helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [f"y{number}"], name=path))
    assert_same(onnx_model.read(TINY, write_onnx(tmp_path / "m.onnx", arrays, nodes=tuple(nodes))))


def test_an_onnx_tensor_beside_the_renamed_one_of_its_product(tmp_path) -> None:
    import onnx

    name = "bert.encoder.layer.0.output.dense"
    arrays = huggingface_names(TINY, EXPECTED.tensors) | {"onnx::MatMul_0": np.zeros((16, 8), np.float32)}
    node = onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_0"], ["y"], name=f"/{name.replace('.', '/')}/MatMul")
    with pytest.raises(InputError, match=f"two different tensors for {name}.weight, {name}.weight and onnx::MatMul_0"):
        onnx_model.read(TINY, write_onnx(tmp_path / "m.onnx", arrays, nodes=(node,)))


def test_every_fault_is_named(tmp_path) -> None:
    arrays = huggingface_names(TINY, EXPECTED.tensors)
    del arrays["bert.encoder.layer.0.output.dense.bias"]
    arrays["qa_outputs.weight"] = arrays["qa_outputs.weight"][:, :5]
    arrays["bert.encoder.layer.1.output.dense.bias"] = np.zeros(8, np.float32)
    arrays["something.else.weight"] = np.zeros((3, 3), np.float32)
    with pytest.raises(InputError) as error:
        onnx_model.read(TINY, write_onnx(tmp_path / "m.onnx", arrays))
    message = str(error.value)
    assert "l0_output_dense_bias (8,) is missing" in message
    assert "cls_squad_output_weights has shape (2, 5) where the configuration says (2, 8)" in message
    assert "l1_output_dense_bias is not used" in message
    assert "something.else.weight is not used" in message


def test_values_that_are_not_finite_are_named() -> None:
    arrays = huggingface_names(TINY, EXPECTED.tensors)
    arrays["qa_outputs.bias"] = np.array([np.nan, 1], np.float32)
    with pytest.raises(InputError, match="cls_squad_output_bias holds values that are not finite"):
        weights_from_names(TINY, arrays, "a test")


@pytest.mark.parametrize(
    "array",
    [np.ones(2, np.int8), np.ones(2, bool), np.ones(2, np.complex64), np.array(["a", "b"]), np.array(["a", "b"], object)],
    ids=lambda array: str(array.dtype),
)
def test_tensors_that_are_no_floating_point_numbers_are_named(array: np.ndarray) -> None:
    arrays = huggingface_names(TINY, EXPECTED.tensors) | {"qa_outputs.bias": array}
    with pytest.raises(InputError, match=f"cls_squad_output_bias holds {array.dtype}, not floating-point numbers"):
        weights_from_names(TINY, arrays, "a test")


@pytest.mark.parametrize(
    ("quantizer", "amax", "sentence"),
    [
        ("input", np.array(["a"]), "a test has 1 values of <U1 as range l0_output_dense_input_amax; give one in floating point"),
        ("input", np.zeros(0), "a test has 0 values of float64 as range l0_output_dense_input_amax"),
        ("weight", np.ones(3), "range l0_output_dense_kernel_amax has 3 values for 8 rows"),
    ],
)
def test_ranges_that_are_none_are_named(quantizer: str, amax: np.ndarray, sentence: str) -> None:
    arrays = huggingface_names(TINY, EXPECTED.tensors) | {f"bert.encoder.layer.0.output.dense._{quantizer}_quantizer._amax": amax}
    with pytest.raises(InputError, match=sentence):
        weights_from_names(TINY, arrays, "a test")


@pytest.mark.parametrize("content", [b"", b"garbage", ONNX.read_bytes()[:100_000]], ids=["empty", "garbage", "cut"])
def test_a_damaged_onnx_file_is_refused(tmp_path, config, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="bad.onnx"):
        onnx_model.read(config, path)


# --- PyTorch, safetensors, Megatron ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "limit"), [("tiny.pt", 0.0), ("tiny_legacy.bin", 0.0), ("tiny_bfloat16.bin", 1e-2)])
def test_files_that_pytorch_wrote(name: str, limit: float) -> None:
    assert_same(pytorch.read(TINY, DATA / name), limit)


def test_a_pickle_of_pytorch_tensors_with_strides() -> None:
    assert_same(pytorch.read_megatron(TINY, DATA / "tiny_tensors.pkl"), 1e-3)


@pytest.mark.parametrize(("kind", "limit"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_safetensors(tmp_path, kind: str, limit: float) -> None:
    import ml_dtypes
    from safetensors.numpy import save_file

    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    arrays = {name: np.ascontiguousarray(a.astype(dtype)) for name, a in huggingface_names(TINY, EXPECTED.tensors).items()}
    save_file(arrays, tmp_path / "model.safetensors")
    assert_same(pytorch.read(TINY, tmp_path / "model.safetensors"), limit)


@pytest.mark.parametrize(("kind", "bits"), [("F8_E4M3", 8), ("F8_E5M2", 8), ("F4", 4)])
def test_safetensors_of_fewer_than_16_bits(tmp_path, kind: str, bits: int) -> None:
    """Written by hand: NumPy has no such type."""
    header = json.dumps({"qa_outputs.bias": {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * bits // 8]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2 * bits // 8))
    with pytest.raises(InputError, match=f"model.safetensors has qa_outputs.bias in {kind}; give the model in FP32, FP16 or BF16"):
        pytorch.read(TINY, path)


def test_a_megatron_dictionary(tmp_path) -> None:
    """Query, key and value come in one (3, heads, head size) product, ranges too; names with `scale` are no weights."""
    arrays = huggingface_names(TINY, EXPECTED.tensors)
    layer = "bert.encoder.layer.0.attention.self"
    for kind in ("weight", "bias"):
        arrays[f"{layer.replace('.self', '')}.query_key_value.{kind}"] = np.concatenate(
            [arrays.pop(f"{layer}.{part}.{kind}") for part in ("query", "key", "value")]
        )
    arrays = {name.replace("encoder.layer.", "encoder.layers."): array for name, array in arrays.items()}
    arrays["bert.encoder.layers.0.attention.query_key_value._input_quantizer._amax"] = np.array(3.5)
    arrays["bert.encoder.layers.0.output.LayerNorm.output_quantizer._amax"] = np.array(2.5)
    arrays["loss_scale"] = np.array(1.0)
    path = tmp_path / "megatron.pkl"
    path.write_bytes(pickle.dumps(arrays))
    weights = pytorch.read_megatron(TINY, path)
    assert_same(weights)
    assert [weights.range(f"l0_attention_self_{part}_input_amax") for part in ("query", "key", "value")] == [3.5] * 3
    assert weights.range("bert_encoder_final_input_quantizer_amax") == 2.5


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_not_run(tmp_path) -> None:
    import zipfile

    bomb = pickle.dumps({"model": _Bomb(tmp_path / "exploded")})
    (tmp_path / "bomb.pkl").write_bytes(bomb)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
    for name in ("bomb.pkl", "bomb.pt"):
        with pytest.raises(InputError, match=f"{name} cannot be loaded: it refers to posix.mkdir, which is no array or tensor"):
            torch_file.load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_objects_beside_the_tensors_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="it refers to argparse.Namespace"):
        pytorch.read(TINY, DATA / "tiny_with_objects.pt")


def test_a_tensor_outside_its_storage_is_refused() -> None:
    storage = torch_file._Storage("Float", np.zeros(4, np.float32))
    for offset, shape, strides in ((0, (5,), (1,)), (2, (2, 2), (2, 1)), (0, (2,), (-1,)), (-1, (1,), (1,))):
        with pytest.raises(InputError, match="outside its storage"):
            torch_file._rebuild_tensor(storage, offset, shape, strides).array()


@pytest.mark.parametrize("size", [0, 10, 1000])
@pytest.mark.parametrize("name", ["tiny.pt", "tiny_legacy.bin", "tiny_tensors.pkl"])
def test_cut_files_are_refused(tmp_path, name: str, size: int) -> None:
    path = tmp_path / name
    path.write_bytes((DATA / name).read_bytes()[:size])
    with pytest.raises(InputError, match=name):
        pytorch.read(TINY, path)


# --- random ---------------------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_for_the_same_seed() -> None:
    assert random_weights.make(TINY, 5).digest() == EXPECTED.digest()
    assert random_weights.make(TINY, 6).digest() != EXPECTED.digest()
