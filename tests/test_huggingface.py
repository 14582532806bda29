# SPDX-License-Identifier: Apache-2.0
"""`builder.py --hf DIR`: BERT models as the Hugging Face hub has them; other architectures are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from conftest import small_config, small_weights
from helpers import QuestionAnswerer, calibrator
from helpers.reference import Reference
from names import huggingface_names

WORDS = ["Paris", "paris", "is", "the", "capital", "of", "France", "Où", "ou", "est", "?", "##s", "."]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]


@pytest.fixture
def model(tmp_path):
    """Return a function that writes a model directory as `save_pretrained` does."""

    def write(**config_values: object) -> Path:
        config = small_config(vocab_size=len(VOCAB), activation="gelu_erf")
        values = {
            "architectures": ["BertForQuestionAnswering"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
            "max_position_embeddings": config.max_position_embeddings,
            "vocab_size": config.vocab_size,
            **config_values,
        }
        directory = tmp_path / "model"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(values))
        arrays = huggingface_names(config, small_weights(config).tensors)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / "model.safetensors")
        (directory / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
        (directory / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        return directory

    return write


def test_a_cased_model_directory_becomes_an_engine(script, model, tmp_path) -> None:
    engine = tmp_path / "e"
    built = script("builder", "--hf", model(), "-o", engine, "-s", 64, "--backend", "cpu")
    assert built.status == 0, built.err
    assert f"{len(VOCAB)} tokens, cased" in built.err
    qa = QuestionAnswerer(engine)
    assert qa.info.config.activation == "gelu_erf"
    assert qa.tokenizer.tokenize("Où est Paris?") == ["Où", "est", "Paris", "?"]
    config = small_config(vocab_size=len(VOCAB), activation="gelu_erf")
    batch = calibrator.random_batches(config, 20)[0]
    expected = Reference(config, small_weights(config))(batch)
    assert np.abs(qa.session.run(batch) - expected).max() < 1e-4


def test_tokenizer_json_serves_where_vocab_txt_is_missing(script, model, tmp_path) -> None:
    directory = model()
    (directory / "vocab.txt").unlink()
    (directory / "tokenizer_config.json").unlink()
    content = {
        "model": {"type": "WordPiece", "vocab": {token: n for n, token in enumerate(VOCAB)}},
        "normalizer": {"lowercase": True},
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))
    assert script("builder", "--hf", directory, "-o", tmp_path / "e", "-s", 64, "--backend", "cpu").status == 0
    assert QuestionAnswerer(tmp_path / "e").tokenizer.tokenize("Où est Paris?") == ["ou", "est", "paris", "?"]


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "xlm-roberta", "albert"])
def test_other_architectures_are_refused_by_name(script, model, tmp_path, kind: str) -> None:
    ended = script("builder", "--hf", model(model_type=kind), "-o", tmp_path / "e", "-s", 64, "--backend", "cpu")
    assert f"describes a '{kind}' model; only BERT (model_type 'bert') is supported" in ended.sentence
    assert ended.status == 1


def test_a_model_without_the_head_says_so(script, model, tmp_path) -> None:
    directory = model()
    config = small_config(vocab_size=len(VOCAB))
    arrays = huggingface_names(config, small_weights(config).tensors)
    save_file({n: np.ascontiguousarray(a) for n, a in arrays.items() if "qa_outputs" not in n}, directory / "model.safetensors")
    ended = script("builder", "--hf", directory, "-o", tmp_path / "e", "-s", 64, "--backend", "cpu")
    assert "cls_squad_output_weights (2, 32) is missing" in ended.sentence


def test_a_directory_without_weights(script, model, tmp_path) -> None:
    directory = model()
    (directory / "model.safetensors").unlink()
    ended = script("builder", "--hf", directory, "-o", tmp_path / "e", "-s", 64, "--backend", "cpu")
    assert "holds neither model.safetensors nor pytorch_model.bin" in ended.sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"model": {"type": "BPE", "vocab": {}}}, "is a BPE tokenizer; only BERT's WordPiece is supported"),
        ({"model": {"vocab": {"[UNK]": 10**30}}}, "holds no WordPiece vocabulary"),
        (
            {"model": {"vocab": {"[UNK]": 0}}, "normalizer": {"lowercase": "yes"}},
            "has lowercase 'yes', which is neither true nor false; mend it, or give --cased or --uncased",
        ),
    ],
    ids=["BPE", "number", "lowercase"],
)
def test_a_tokenizer_that_cannot_be_used(script, model, tmp_path, content: dict, sentence: str) -> None:
    directory = model()
    (directory / "vocab.txt").unlink()
    (directory / "tokenizer.json").write_text(json.dumps(content))
    ended = script("builder", "--hf", directory, "-o", tmp_path / "e", "-s", 64, "--backend", "cpu")
    assert (ended.status, sentence in ended.sentence) == (1, True)
