# SPDX-License-Identifier: Apache-2.0
"""One set of names whatever the source, every fault named, and nothing in a file ever executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from conftest import ANSWER, MODEL, ONNX, PASSAGE, QUESTION, Ended, assert_close
from helpers.batching import random_batch
from helpers.config import BertConfig
from helpers.errors import InputError
from helpers.reference import Reference
from helpers.weights import Weights, onnx_model, pytorch, random_weights, tf_checkpoint, torch_file
from helpers.weights.names import activation_ranges, expected_shapes
from helpers.weights.state_dict import canonical, weights_from_names
from names import TINY, huggingface_names, tensorflow_names

DATA = Path(__file__).parent / "data"
EXPECTED = random_weights.make(TINY, 5)


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


def assert_same(weights: Weights, limit: float = 0.0, config: BertConfig = TINY) -> None:
    assert set(weights.tensors) == set(expected_shapes(config))
    for name, array in weights.tensors.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, EXPECTED[name], atol=limit, err_msg=name)


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
        ("bert.pooler.dense.weight", None),
        ("bert.embeddings.position_ids", None),
        ("bert.embeddings.word_embeddings._weight_quantizer._amax", None),
        ("qa_outputs._input_quantizer._amax", None),
        ("bert.encoder.layer.0.output.dense.weight_mask", None),
    ],
)
def test_names(given: str, ours: str | None) -> None:
    assert canonical(given) == ours


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


# --- TensorFlow -----------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, variables: dict[str, np.ndarray], kind: str = "float32") -> Path:
    """Let TensorFlow write a checkpoint as BERT's training script does: named variables through a Saver."""
    tf = pytest.importorskip("tensorflow")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saved, feed = [], {}
        for name, array in variables.items():
            dtype = tf.as_dtype(kind) if array.dtype.kind == "f" else tf.as_dtype(array.dtype)
            value = tf.compat.v1.placeholder(tf.as_dtype(array.dtype), array.shape)
            saved.append(tf.compat.v1.Variable(tf.cast(value, dtype), name=name, use_resource=False))
            feed[value] = array
        session.run(tf.compat.v1.global_variables_initializer(), feed)
        tf.compat.v1.train.Saver(saved).save(session, str(path), write_meta_graph=False)
    return path


@pytest.mark.parametrize(("kind", "limit"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_a_tensorflow_checkpoint_of_any_float_type(tmp_path, kind: str, limit: float) -> None:
    assert_same(
        tf_checkpoint.read(TINY, write_checkpoint(tmp_path / "model.ckpt", tensorflow_names(EXPECTED.tensors), kind)), limit
    )


def test_the_repositorys_model_through_tensorflow(tmp_path, config, weights, script) -> None:
    """Same weights, same logits, same answer as from the ONNX file."""
    path = write_checkpoint(tmp_path / "model.ckpt", tensorflow_names(weights.tensors))
    read = tf_checkpoint.read(config, path)
    batch = random_batch([20, 9], config.vocab_size)
    assert_close(Reference(config, read)(batch), Reference(config, weights)(batch), 1e-6)
    engine = tmp_path / "tf.engine"
    built: Ended = script("builder", "-m", path, "-c", MODEL, "-o", engine, "-s", 384, "--backend", "cpu")
    assert built.status == 0, built.err
    answered: Ended = script("inference", "-e", engine, "-p", PASSAGE, "-q", QUESTION)
    assert f"'{ANSWER}'" in answered.out


def test_faults_of_a_checkpoint_are_named(tmp_path) -> None:
    variables = tensorflow_names(EXPECTED.tensors)
    del variables["cls/squad/output_bias"]
    variables["bert/extra/kernel"] = np.zeros((2, 2), np.float32)
    with pytest.raises(InputError, match="cls_squad_output_bias .* is missing; bert_extra_kernel is not used"):
        tf_checkpoint.read(TINY, write_checkpoint(tmp_path / "model.ckpt", variables))


def test_a_cut_checkpoint_is_refused(tmp_path) -> None:
    path = write_checkpoint(tmp_path / "model.ckpt", tensorflow_names(EXPECTED.tensors))
    data = Path(f"{path}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match="model.ckpt cannot be read"):
        tf_checkpoint.read(TINY, path)


# --- random ---------------------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_for_the_same_seed() -> None:
    assert random_weights.make(TINY, 5).digest() == EXPECTED.digest()
    assert random_weights.make(TINY, 6).digest() != EXPECTED.digest()
