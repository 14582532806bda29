# SPDX-License-Identifier: Apache-2.0
"""A user's mistake gets one sentence, the right exit status, no traceback, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys

import pytest

from conftest import MODEL, ONNX, PASSAGE, QUESTION, ROOT, small_config
from helpers.config import BertConfig
from helpers.engine_file import METADATA_KEY, EngineInfo

ASK = ("-p", PASSAGE, "-q", QUESTION)


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Return a directory of files that are each wrong in one way."""
    directory = tmp_path_factory.mktemp("bad")
    files = {
        "empty": b"",
        "garbage": bytes(range(256)) * 8,
        "latin1.txt": "na\xefve".encode("latin-1"),
        "blank.txt": b" \n",
        "cut.json": b'{"data": [',
        "list.json": b"[1, 2]",
        "nothing.json": b'{"data": []}',
        "noid.json": json.dumps({"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b"}]}]}]}).encode(),
        "number.json": json.dumps({"data": [{"paragraphs": [{"context": 5, "qas": [{"id": 1, "question": "b"}]}]}]}).encode(),
        "long.json": json.dumps(
            {"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "q7", "question": "why " * 70}]}]}]}
        ).encode(),
        "twice.json": json.dumps(
            {"data": [{"paragraphs": [{"context": "a", "qas": [{"id": n, "question": "b"} for n in (5, "5")]}]}]}
        ).encode(),
        "words.txt": b"hello\nworld\n",
        "vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nother\n",
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    os.mknod(directory / "socket", stat.S_IFSOCK | 0o600)
    return directory


@pytest.mark.parametrize(
    ("command", "line", "status", "sentence"),
    [
        # engines
        ("inference", "-e missing.engine {ask}", 1, "the engine missing.engine does not exist; build one with builder.py"),
        ("inference", "-e {bad} {ask}", 1, "is a directory"),
        ("inference", "-e {bad}/empty {ask}", 4, "is no engine of builder.py or builder_varseqlen.py (0 bytes"),
        ("inference", "-e {bad}/garbage {ask}", 4, "is no engine of builder.py"),
        ("perf", "-e missing.engine", 1, "the engine missing.engine does not exist"),
        ("perf", "-e {engine} -s 385", 4, "takes at most 384 word pieces, not 385; give -s 384 or less"),
        # texts
        ("inference", "-e {engine} -p -q what", 1, "the passage is empty; give it some text"),
        ("inference", "-e {engine} -pf {bad}/blank.txt -q what", 1, "the passage is empty"),
        ("inference", "-e {engine} -pf {bad}/none.txt -q what", 1, "none.txt cannot be read (No such file or directory)"),
        ("inference", "-e {engine} -pf {bad}/latin1.txt -q what", 1, "latin1.txt is not UTF-8 text (byte 2); convert it to UTF-8"),
        ("inference", "-e {engine} -pf {bad} -q what", 1, "cannot be read (Is a directory)"),
        ("inference", "-e {engine} -p a -pf b -q what", 2, "-p and -pf each give a passage; give one of them"),
        ("inference", "-e {engine} -p a -sq b", 2, "-p and -sq each give a passage"),
        ("inference", "-e {engine} -sq b -q what", 2, "-q and -sq each give a question"),
        ("inference", "-e {engine} -p a -q b -qf c", 2, "-q and -qf each give a question"),
        (
            "inference",
            "-e {engine} -s 20 -p words -q {long}",
            2,
            "leaves no room for the passage in a window of 20; give a longer -s",
        ),
        ("inference", "-e {engine} -s 400 {ask}", 4, "takes at most 384 word pieces, a window of 400 was asked for; give -s 384"),
        (
            "inference",
            "-e {engine} {ask} --n-best-file {out}",
            2,
            "--n-best-file {out} is for the answers to a SQuAD file; give one",
        ),
        ("inference", "-e {engine} {ask} --na-prob-file {out}", 2, "with -sq/--squad-json, or leave --na-prob-file out"),
        # SQuAD files
        ("inference", "-e {engine} -sq {bad}/cut.json", 1, "cut.json is not valid JSON"),
        ("inference", "-e {engine} -sq {bad}/list.json", 1, "list.json is not in SQuAD format"),
        ("inference", "-e {engine} -sq {bad}/nothing.json", 1, "nothing.json holds no questions"),
        ("inference", "-e {engine} -sq {bad}/noid.json", 1, "noid.json is not in SQuAD format (KeyError('id'))"),
        ("inference", "-e {engine} -sq {bad}/number.json", 1, "a question or a context is not text"),
        (
            "inference",
            "-e {engine} -s 64 -sq {bad}/long.json -o {out}",
            2,
            "question 'q7' of 64 word pieces leaves no room for the passage in a window of 64; give a longer -s",
        ),
        ("inference", "-e {engine} -sq {bad}/twice.json", 1, "twice.json has the question id '5' twice; give every question an id"),
        ("inference", "-e {engine} -sq {sample} -o /proc/nothing/p.json", 1, "/proc/nothing/p.json cannot be written"),
        ("inference", "-e {engine} -sq {sample} -o {bad}", 1, "is a directory; give the name of a file to write"),
        ("inference", "-e {engine} -sq {sample} -o .", 1, ". is a directory; give the name of a file to write"),
        ("inference", "-e {engine} -sq {sample} -o {nothing}", 1, ". is a directory; give the name of a file to write"),
        ("inference", "-e {engine} -sq {sample} --n-best-file /", 1, "/ is a directory; give the name of a file to write"),
        # vocabularies
        ("inference", "-e {engine} -v {bad}/none.txt {ask}", 1, "the vocabulary {bad}/none.txt cannot be read"),
        ("inference", "-e {engine} -v {bad}/words.txt {ask}", 1, "is no BERT vocabulary: it lacks [CLS], [SEP], [UNK]"),
        ("inference", "-e {engine} -v {bad}/vocab.txt {ask}", 4, "is not the one that {engine} carries (30522 tokens"),
        # runtimes
        ("inference", "-e {engine} --threads 0 {ask}", 2, "argument --threads: 0 is too small"),
        ("inference", "-e {engine} --threads 99999999999999 {ask}", 2, "--threads 99999999999999 is out of range; give 1 to "),
        ("inference", "-e {engine} --streams 2000000000 {ask}", 2, "--streams 2000000000 is out of range; give 1 to "),
        ("perf", "-e {engine} -b 99999999999999999999 -s 64", 2, "word pieces that a run can count; give -b 33554431 or less"),
        # building
        ("builder", "-x {onnx} -c {bad} -o {out}", 1, "no bert_config.json (or config.json) in {bad}"),
        ("builder", "-c {model} -o {out}", 2, "no weights are given; give one of -m/--ckpt, -x/--onnx"),
        ("builder", "-x a -c {long_name} -o {out}", 1, "bert_config.json cannot be read (File name too long); correct the path"),
        ("builder", "-m {long_name} -c {model} -o {out}", 1, "cannot be read (File name too long); correct the path"),
        ("builder", "--hf {long_name} -c {model} -o {out}", 1, "cannot be read (File name too long); correct the path"),
        ("builder", "--random-weights -1 -c {model} -o {out}", 2, "argument --random-weights: -1 is too small, give 0 or more"),
        ("builder", "-x a -o {out}", 2, "no model configuration is given; give the directory of bert_config.json"),
        ("builder", "-x a -m b -c {model} -o {out}", 2, "-m/--ckpt and -x/--onnx are given; give one of"),
        ("builder", "-x {bad}/none.onnx -c {model} -o {out}", 1, "none.onnx cannot be read"),
        ("builder", "-m {bad}/none.ckpt -c {model} -o {out}", 1, "there is no TensorFlow checkpoint {bad}/none.ckpt"),
        ("builder", "-pt {bad}/none.pt -c {model} -o {out}", 1, "none.pt cannot be read (No such file or directory)"),
        (
            "builder",
            "-x {onnx} -c {model} -o {out} -s 600",
            2,
            "sequence length 600 is longer than the model's 512 positions; give -s 512",
        ),
        ("builder", "-x {onnx} -c {model} -o {out} --fp32 --fp16", 2, "--fp32 asks for 32-bit arithmetic only"),
        ("builder", "-x {onnx} -c {model} -o {out} --int8 --fp8", 2, "--int8 and --fp8 exclude each other"),
        ("builder", "-x {onnx} -c {model} -o {out} --fp8", 2, "the cpu backend has no FP8 arithmetic"),
        (
            "builder_varseqlen",
            "-x {onnx} -c {model} -o {out} --megatron -il --int8",
            2,
            "the cpu backend cannot do what --megatron asks",
        ),
        ("builder", "-x {onnx} -c {model} -o {out} -v {bad}/words.txt", 1, "is no BERT vocabulary"),
        ("builder", "-x {onnx} -c {model} -o {bad}", 1, "is a directory; give the name of a file"),
        ("builder", "-x {onnx} -c {model} -o {bad}/socket", 1, "socket is a socket; give the name of a file"),
        ("builder", "-x {onnx} -c {model} -o {nothing}", 1, ". is a directory; give the name of a file"),
        ("builder", "-x {onnx} -c {model} -o /proc/nothing/e", 1, "/proc/nothing/e cannot be written"),
        ("builder", "-x {onnx} -c {model} -o {out} --int8 --calibrate -p {bad}/list.json", 1, "is no calibration cache"),
        (
            "builder",
            "-x {onnx} -c {model} -o {out} --int8 --calibrate -p {bad}",
            1,
            "is a directory; give the name of a file to write",
        ),
        ("builder", "-x {onnx} -c {model} -o {out} --int8 --calibrate -p {long_name}", 1, "cannot be read (File name too long)"),
        (
            "builder",
            "-x {onnx} -c {model} -o {out} --int8 --calibrate -j {bad}/latin1.txt -p {bad}/new",
            1,
            "the SQuAD file {bad}/latin1.txt is not UTF-8 text (byte 2); convert it to UTF-8",
        ),
        (
            "builder",
            "-x {onnx} -c {model} -o {out} --int8 --calibrate -j {bad}/cut.json -p {bad}/new",
            1,
            "cut.json is not valid JSON",
        ),
        (
            "builder",
            "-x {onnx} -c {model} -o {out} -s 64 --int8 --calibrate -j {bad}/long.json -p {bad}/new",
            2,
            "question 'q7' of 64 word pieces leaves no room for the passage in a window of 64; give a longer -s, or other",
        ),
    ],
)
def test_mistakes(script, engines, bad, tmp_path, command: str, line: str, status: int, sentence: str) -> None:
    places = {
        "bad": bad,
        "long_name": "a" * 300,
        "engine": engines["fp32"],
        "model": MODEL,
        "nothing": "",
        "onnx": ONNX,
        "out": tmp_path / "out.engine",
        "sample": ROOT / "squad" / "dev-sample-1000.json",
    }
    words: list[str] = []
    for word in line.split():
        if word == "{ask}":
            words += ASK
        elif word == "{long}":
            words += ["long"] * 30
        else:
            words.append(word.format(**places))
    before = sorted(bad.iterdir())
    ended = script(command, *words, *(["--backend", "cpu"] if command.startswith("builder") else []))
    assert ended.sentence.find(sentence.format(**places)) >= 0, ended.err
    assert ended.status == status
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []
    assert sorted(bad.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_size": 7, "num_attention_heads": 2}, "hidden_size 7, which 2 attention heads cannot share evenly"),
        ({"hidden_size": "big"}, "hidden_size = 'big'; it must be a whole number"),
        ({"hidden_size": 10**23}, "hidden_size = 100000000000000000000000; it must be a whole number from 1 to 2147483647"),
        ({"layer_norm_eps": None}, "layer_norm_eps = None; it must be a number above 0 and below 1"),
        ({"layer_norm_eps": True}, "layer_norm_eps = True; it must be"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps = '1e-12'; it must be"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps = -1.0; it must be"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps = nan; it must be"),
        ({"type_vocab_size": 1}, "type_vocab_size 1, but question answering needs two segment types"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'; only the GELU forms"),
        ({"hidden_act": ["gelu"]}, "hidden_act ['gelu']; only the GELU forms"),
        ({"model_type": "roberta"}, "describes a 'roberta' model; only BERT"),
        ({"num_hidden_layers": None}, "num_hidden_layers = None"),
        ({"intermediate_size": 99}, "l0_intermediate_dense_kernel has shape (1536, 384) where the configuration says (99, 384)"),
        ({"vocab_size": 40000}, "bert_embeddings_word_embeddings has shape (30522, 384) where the configuration says (40000, 384)"),
    ],
)
def test_a_configuration_that_does_not_fit(script, tmp_path, change: dict, sentence: str) -> None:
    values = json.loads((MODEL / "bert_config.json").read_text()) | change
    (tmp_path / "bert_config.json").write_text(json.dumps(values))
    ended = script("builder", "-x", ONNX, "-c", tmp_path, "-o", tmp_path / "out.engine", "--backend", "cpu")
    assert sentence in ended.sentence
    assert ended.status == 1
    assert not (tmp_path / "out.engine").exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "{"], ids=["nested", "cut"])
def test_a_configuration_that_is_no_json(script, tmp_path, content: str) -> None:
    (tmp_path / "bert_config.json").write_text(content)
    ended = script("builder", "-x", ONNX, "-c", tmp_path, "-o", tmp_path / "e", "--backend", "cpu")
    assert (ended.status, "bert_config.json is not valid JSON" in ended.sentence) == (1, True)


def test_a_configuration_with_a_byte_order_mark(config, tmp_path) -> None:
    (tmp_path / "bert_config.json").write_text((MODEL / "bert_config.json").read_text(), encoding="utf-8-sig")
    assert BertConfig.from_dir(tmp_path) == config


def test_random_weights_that_no_memory_holds(script, tmp_path) -> None:
    values = {
        "hidden_size": 2**30,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 1,
        "vocab_size": 2**31 - 1,
    }
    (tmp_path / "bert_config.json").write_text(json.dumps(values))
    ended = script("builder", "--random-weights", 1, "-c", tmp_path, "-o", tmp_path / "e", "--backend", "cpu")
    assert "bert_embeddings_word_embeddings (2147483647, 1073741824) does not fit into memory" in ended.sentence
    assert ended.status == 1


def test_a_vocabulary_larger_than_the_model(script, tmp_path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text((MODEL / "vocab.txt").read_text() + "more\n")
    ended = script("builder", "-x", ONNX, "-c", MODEL, "-v", vocab, "-o", tmp_path / "e", "--backend", "cpu")
    assert "has 30523 lines, the model's embedding table 30522 rows" in ended.sentence
    assert ended.status == 1


def test_a_model_that_is_larger_than_the_memory(script, tmp_path, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("helpers.backends.cpu.build", full)
    ended = script("builder", "-x", ONNX, "-c", MODEL, "-o", tmp_path / "e", "--backend", "cpu")
    assert "out of memory: the model's 22,566,146 parameters take 0.1 GiB" in ended.sentence
    assert (ended.status, "free some memory" in ended.sentence, "-b" in ended.sentence) == (1, True, False)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_batch_that_is_larger_than_the_memory(engines, runtime: str) -> None:
    words = ["-e", str(engines["fp32"]), "-b", "20000", "-s", "384", "-i", "1", "-w", "0", "--cpu-runtime", runtime]
    perf = shlex.join([sys.executable, "perf.py", *words])
    done = subprocess.run(["bash", "-c", f"ulimit -v 8000000; {perf}"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("error: out of memory; give a smaller -b/--batch-size")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)


@pytest.mark.parametrize(("module", "name"), [("openvino", "Core"), ("onnxruntime", "InferenceSession")])
def test_an_engine_that_is_larger_than_the_memory(script, engines, monkeypatch, module: str, name: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(f"{module}.{name}", fail)
    ended = script("perf", "-e", engines["fp32"], "--cpu-runtime", module)
    assert (ended.status, "(86 MiB) does not fit; free some memory" in ended.sentence) == (1, True), ended.err


def test_logits_that_are_not_finite_are_not_turned_into_answers(script, tmp_path) -> None:
    import onnx

    from helpers.backends import cpu
    from helpers.config import BuildOptions
    from helpers.weights import random_weights

    config = small_config(vocab_size=30522, max_position_embeddings=128)
    weights = random_weights.make(config, 1)
    weights.tensors["cls_squad_output_bias"][0] = float("nan")
    path = tmp_path / "nan.engine"
    info = EngineInfo("cpu", "padded", "fp32", (1,), (128,), config, vocab=(MODEL / "vocab.txt").read_text())
    cpu.build(config, weights, BuildOptions(path), info)
    assert METADATA_KEY in {entry.key for entry in onnx.load(path).metadata_props}
    ended = script("inference", "-e", path, *ASK)
    assert (ended.status, "gave logits that are not finite numbers" in ended.sentence) == (4, True)
