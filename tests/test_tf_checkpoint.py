# SPDX-License-Identifier: Apache-2.0
"""Weights of TensorFlow checkpoints, which TensorFlow itself writes here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import ANSWER, MODEL, PASSAGE, QUESTION, Ended, assert_close
from helpers.batching import random_batch
from helpers.errors import InputError
from helpers.reference import Reference
from helpers.weights import tf_checkpoint
from names import EXPECTED, TINY, assert_same, tensorflow_names


@pytest.mark.parametrize(
    ("variable", "ours"),
    [
        ("bert/encoder/layer_0/output/dense/kernel/adam_v", None),
        ("bert/encoder/layer_0/output/dense/kernel/Adam_1", None),
        ("bert/encoder/layer_0/output/dense/kernel/lamb_m", None),
        ("beta1_power", None),
        ("bert/lambda_extra", "bert_lambda_extra"),
    ],
)
def test_names_of_tensorflow_variables(variable: str, ours: str | None) -> None:
    assert tf_checkpoint.canonical(variable) == ours


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


def test_two_variables_of_one_name_that_differ_are_refused(tmp_path) -> None:
    variables = tensorflow_names(EXPECTED.tensors) | {"cls/squad_output_bias": np.zeros(2, np.float32)}
    with pytest.raises(
        InputError, match="two different tensors for cls_squad_output_bias, cls/squad/output_bias and cls/squad_out"
    ):
        tf_checkpoint.read(TINY, write_checkpoint(tmp_path / "model.ckpt", variables))


def test_a_cut_checkpoint_is_refused(tmp_path) -> None:
    path = write_checkpoint(tmp_path / "model.ckpt", tensorflow_names(EXPECTED.tensors))
    data = Path(f"{path}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match="model.ckpt cannot be read"):
        tf_checkpoint.read(TINY, path)
