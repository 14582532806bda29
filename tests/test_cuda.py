# SPDX-License-Identifier: Apache-2.0
"""What of the cuda backend needs neither a GPU nor compiled code: writing engines, and sessions over a double of infer_c."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import small_config, small_weights
from helpers import backends
from helpers.backends import cuda, cuda_file
from helpers.batching import random_batch
from helpers.config import BuildOptions
from helpers.engine_file import EngineInfo, read_info
from helpers.errors import BertError, EngineMismatch, InputError, MissingDependency, UsageError
from helpers.weights import Weights
from helpers.weights.names import activation_ranges
from tests.cuda_engine import built

CONFIG = small_config(head_size=32)


def write_engine(
    path: Path, fp16: bool = True, weights: Weights | None = None, asked: dict | None = None, **changes: object
) -> Path:
    """Build an engine of a small model. asked: further build options; changes: of the model's configuration."""
    config = replace(CONFIG, **changes)
    options = BuildOptions(path, **{"fp16": fp16, "batch_sizes": (1, 4), "sequence_lengths": (16, 64), **(asked or {})})
    info = EngineInfo("cuda", "packed", options.precision, options.batch_sizes, options.sequence_lengths, config)
    cuda.build(config, weights or small_weights(config), options, info)
    return path


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def module_with(bert_inf: Any, device: str, capability: int = 90) -> SimpleNamespace:
    """Return what stands for the compiled module, of this revision, on such a GPU."""
    return SimpleNamespace(revision=cuda.REVISION, bert_inf=bert_inf, capability=lambda: capability, device_name=lambda: device)


@pytest.fixture(autouse=True)
def no_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Build engines as on a machine without the compiled module."""
    monkeypatch.setenv("INFER_C_DIR", str(tmp_path))
    monkeypatch.delitem(sys.modules, "infer_c", raising=False)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(built.BUILD)])  # where GPU tests look


def test_engine_holds_fused_products_in_the_precision_asked_for(tmp_path: Path) -> None:
    header, _ = header_of(write_engine(tmp_path / "e"))
    hidden = CONFIG.hidden_size
    kernel = header["l1_attention_self_qkv_kernel"]
    assert kernel["dtype"] == "F16" and kernel["shape"] == [3 * hidden, hidden]
    assert header["l1_attention_self_qkv_bias"]["dtype"] == header["cls_squad_output_weights"]["dtype"] == "F32"
    assert read_info(tmp_path / "e").config == CONFIG
    header, _ = header_of(write_engine(tmp_path / "f", fp16=False))
    assert header["l0_output_dense_kernel"]["dtype"] == "F32"


def test_query_key_and_value_lie_in_this_order() -> None:
    weights = small_weights(CONFIG)
    tensors = cuda_file.packed_tensors(CONFIG, weights, np.dtype(np.float32))
    hidden = CONFIG.hidden_size
    for place, name in enumerate(cuda_file.QUERY_KEY_VALUE):
        part = slice(place * hidden, (place + 1) * hidden)
        assert np.array_equal(tensors["l1_attention_self_qkv_kernel"][part], weights[f"l1_{name}_kernel"])
        assert np.array_equal(tensors["l1_attention_self_qkv_bias"][part], weights[f"l1_{name}_bias"])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"intermediate_size": 100}, "intermediate_size that is a multiple of 8 in fp16, not 100; use --backend cpu"),
        ({"num_attention_heads": 1, "hidden_size": 136}, "head sizes to 128"),
        ({"intermediate_size": 136, "asked": {"int8": True}}, "multiple of 16 in int8, not 136; give --fp16 instead of --int8"),
        ({"hidden_size": 40, "asked": {"fp8": True}}, "hidden_size that is a multiple of 16 in fp8, not 40; give --fp16"),
        (
            {"num_attention_heads": 1, "hidden_size": 128, "asked": {"int8": True}},
            "head sizes 32 and 64 and up to 512 tokens, not 128 and 64",
        ),
        (
            {"asked": {"batch_sizes": (1, 67108865)}},
            "at most 1073741824 tokens at a time, batch 67108865 of length 64 has 4294967360; give a smaller -b or -s",
        ),
    ],
)
def test_sizes_beyond_the_kernels_are_refused(tmp_path: Path, changes: dict, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        write_engine(tmp_path / "e", **changes)
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_fp16_are_refused(tmp_path: Path) -> None:
    weights = small_weights(CONFIG)
    weights.tensors["l0_output_dense_kernel"][0, 0] = 1e6
    with pytest.raises(UsageError, match=r"l0_output_dense_kernel.*65504"):
        cuda_file.packed_tensors(CONFIG, weights, np.dtype(np.float16))
    ranges = dict.fromkeys(activation_ranges(CONFIG), np.float32(1))
    cuda_file.packed_tensors(CONFIG, Weights(weights.tensors, ranges), np.dtype(np.float16), "int8")  # kernels have scales there
    weights.tensors["bert_embeddings_position_embeddings"][0, 0] = 1e6
    with pytest.raises(UsageError, match=r"bert_embeddings_position_embeddings.*65504; leave out --fp16, --int8 and --fp8"):
        cuda_file.packed_tensors(CONFIG, Weights(weights.tensors, ranges), np.dtype(np.float16), "int8")


def ranged(kernels: bool) -> Weights:
    """Return a small model with made-up activation ranges; with ranges of its kernels too, narrower than their largest values."""
    weights = small_weights(CONFIG)
    ranges = {name: np.float32(1 + number / 8) for number, name in enumerate(activation_ranges(CONFIG))}
    names = [name for name in weights.tensors if kernels and name.startswith("l") and name.endswith("_kernel")]
    ranges |= {f"{name}_amax": np.abs(weights[name]).max(1) * np.float32(0.75) for name in names}
    return Weights(weights.tensors, ranges)


@pytest.mark.parametrize("kernels", [False, True], ids=["own ranges", "stored ranges"])
@pytest.mark.parametrize(("precision", "limit", "dtype"), [("int8", 127, np.int8), ("fp8", 448, np.uint8)])
def test_eight_bit_products_come_back_within_half_a_step(tmp_path: Path, precision, limit, dtype, kernels: bool) -> None:
    weights = ranged(kernels)
    stored = load_file(write_engine(tmp_path / "e", False, weights, {precision: True}))
    assert read_info(tmp_path / "e").precision == precision
    assert stored["bert_embeddings_word_embeddings"].dtype == np.float16
    assert stored["cls_squad_output_weights"].dtype == np.float32
    for layer in range(CONFIG.num_hidden_layers):
        for product, parts in cuda_file.PRODUCTS.items():
            name = f"l{layer}_{product}"
            kernel, bias = (np.concatenate([weights[f"l{layer}_{part}_{kind}"] for part in parts]) for kind in ("kernel", "bias"))
            amax = np.abs(kernel).max(1) * (0.75 if kernels else 1)
            input_amax = max(float(weights.ranges[f"l{layer}_{part}_input_amax"]) for part in parts)
            assert stored[f"{name}_kernel"].dtype == dtype and stored[f"{name}_input_scale"].shape == (1,)
            units = np.ones(len(bias))  # of what the product gives: queries and keys are rounded too
            if product == "attention_self_qkv":
                for place, letter in enumerate("ab"):
                    amax_of_operand = float(weights.ranges[f"l{layer}_attention_self_qv_{letter}_input_quantizer_amax"])
                    units[place * CONFIG.hidden_size : (place + 1) * CONFIG.hidden_size] = amax_of_operand / 448
                np.testing.assert_allclose(
                    stored[f"l{layer}_attention_self_score_scale"], units[0] * units[CONFIG.hidden_size], rtol=1e-6
                )
            np.testing.assert_allclose(stored[f"{name}_bias"] * units, bias, rtol=1e-6)
            np.testing.assert_allclose(stored[f"{name}_input_scale"], input_amax / limit, rtol=1e-6)
            np.testing.assert_allclose(stored[f"{name}_scale"] * units, amax / limit * input_amax / limit, rtol=1e-6)
            codes = stored[f"{name}_kernel"]
            values = (codes if precision == "int8" else codes.view(ml_dtypes.float8_e4m3fn)).astype(np.float32)
            scale = stored[f"{name}_scale"] * units / stored[f"{name}_input_scale"]
            wanted = np.clip(kernel, -amax[:, None], amax[:, None]) / scale[:, None]
            # INT8 steps are 1; E4M3 has 3 bits of mantissa, and steps of 1/512 below 1/64.
            half = 0.5 if precision == "int8" else np.maximum(np.abs(wanted) / 16, 1 / 1024)
            assert (np.abs(values - wanted) <= half * 1.0001).all()
            assert np.abs(values).max() == limit


def test_eight_bits_leave_the_other_tensors_as_fp16_has_them(tmp_path: Path) -> None:
    plain = load_file(write_engine(tmp_path / "plain"))
    for precision in ("int8", "fp8"):
        stored = load_file(write_engine(tmp_path / precision, weights=ranged(False), asked={precision: True}))
        kernels = {f"l{layer}_{product}_kernel" for layer in range(CONFIG.num_hidden_layers) for product in cuda_file.PRODUCTS}
        layers = range(CONFIG.num_hidden_layers)
        of_scores = {f"l{layer}_attention_self_score_scale" for layer in layers}
        scales = {name.replace("kernel", end) for name in kernels for end in ("scale", "input_scale")}
        assert stored.keys() - plain.keys() == scales | of_scores
        for name in plain.keys() - kernels - {f"l{layer}_attention_self_qkv_bias" for layer in layers}:
            assert stored[name].dtype == plain[name].dtype
            np.testing.assert_array_equal(stored[name], plain[name])


def test_eight_bits_need_hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On another GPU an engine is written, for a machine that has one, without a search; it is not loaded."""
    monkeypatch.setitem(sys.modules, "infer_c", module_with(None, "GPU", capability=89))
    path = write_engine(tmp_path / "e", weights=ranged(False), asked={"int8": True})
    assert f"for another machine: {path} is an int8 engine" in capsys.readouterr().err
    info = read_info(path)
    sentence = r"e is an int8 engine, which needs compute capability 9\.0 \(Hopper\), this GPU has 8\.9; build it again with --fp16"
    with pytest.raises(EngineMismatch, match=sentence):
        backends.load(path, info, backends.LoadOptions())


def test_eight_bits_elsewhere_than_in_products_have_no_effect() -> None:
    said: list[str] = []
    options = BuildOptions(Path("e"), int8=True, force_int8_multihead=True, force_int8_skipln=True)
    backends.check_options("cuda", options, said.append)
    assert said == [f"{flag} has no effect on cuda engines" for flag in ("-iln/--force-int8-skipln", "-imh/--force-int8-multihead")]


def test_options_for_cpus_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(backends, "module", lambda name: SimpleNamespace(check=lambda: None, load=lambda *arguments: None))
    options = backends.LoadOptions(enable_graph=True, threads=2, cpu_runtime="openvino", log=said.append)
    backends.load("e", SimpleNamespace(backend="cuda"), options)
    assert said == ["--cpu-runtime has no effect on cuda engines", "--threads has no effect on cuda engines"]


def test_weights_without_ranges_make_no_eight_bit_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no activation range l0_attention_self_query_input_amax"):
        write_engine(tmp_path / "e", asked={"int8": True})


def test_without_the_module_the_message_is_the_build_command(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="cmake -S . -B build && cmake --build build -j"):
        backends.module("cuda").check()
    (tmp_path / "infer_c.py").write_text("bert_inf = None\n")
    with pytest.raises(MissingDependency, match=r"was compiled from another version; in .* run: cmake -S \. -B build"):
        backends.module("cuda").check()


class FakeEngine:
    """Stands for infer_c.bert_inf: a run finds what its number of tokens lacks."""

    def __init__(self, path: str, enable_graph: bool, choices: str) -> None:
        self.found = json.loads(choices)

    def searched(self, batch: int, longest: int, tokens: int) -> bool:
        return str(tokens) in self.found

    def run_packed(self, ids: np.ndarray, segments: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
        self.found.setdefault(str(ids.size), [[1]])
        return np.zeros((ids.size, 2), np.float32)

    def choices(self) -> str:
        return json.dumps(self.found)


def test_a_search_is_announced_and_remembered_for_this_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_engine(tmp_path / "e")
    found = {"algorithms": {"40": [[2]]}, "searched_on": "GPU A"}
    info = replace(read_info(path), details={**found, "kernels": cuda.KERNELS})

    def announced(device: str, lengths: list[int]) -> list[str]:
        monkeypatch.setitem(sys.modules, "infer_c", module_with(FakeEngine, device))
        said: list[str] = []
        session = backends.load(path, info, backends.LoadOptions(log=said.append))
        for length in lengths:
            session.run(random_batch([length], CONFIG.vocab_size))
        return said

    assert announced("GPU A", [40]) == []  # searched at the build
    said = announced("GPU A", [300, 300])
    assert len(said) == 1 and "about 300 tokens" in said[0]
    assert announced("GPU A", [300, 40]) == []  # remembered
    assert len(announced("GPU B", [300, 40])) == 2  # neither was found on such a GPU
    assert announced("GPU B", [300, 40]) == []
    info = replace(info, details={**found, "kernels": cuda.KERNELS - 1})  # the build's were other kernels
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert len(announced("GPU A", [40])) == 1


@pytest.mark.parametrize("kept", ["5", "[1, 2]", "[" * 100_000, '{"300": 5}'])
def test_what_is_damaged_in_the_memory_is_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    class Engine(FakeEngine):
        def __init__(self, path: str, enable_graph: bool, choices: str) -> None:
            self.found = {key: ways for key, ways in json.loads(choices).items() if isinstance(ways, list)}

    path = write_engine(tmp_path / "e")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "infer_c", module_with(Engine, "A"))
    batch = random_batch([300], CONFIG.vocab_size)
    said: list[str] = []
    info = replace(read_info(path), details={"algorithms": json.loads("[5]"), "searched_on": "A", "kernels": cuda.KERNELS})

    def run() -> None:
        backends.load(path, info, backends.LoadOptions(log=said.append)).run(batch)

    run()
    (memory,) = (tmp_path / "cache").rglob("*.json")
    memory.write_text(kept)
    run()
    assert len(said) == 2
    run()
    assert len(said) == 2  # written whole again


class FailingEngine(FakeEngine):
    """Stands for an engine on a GPU without memory."""

    def run_packed(self, *_: object) -> np.ndarray:
        raise RuntimeError("cudaGraphInstantiate failed with cudaErrorMemoryAllocation (out of memory)")

    prepare = time_staged = run_packed

    def stage(self, *_: object) -> None:
        """Copy nothing."""


def test_failures_of_the_gpu_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(path: str, enable_graph: bool, choices: str = "{}") -> FailingEngine:
        return FailingEngine(path, enable_graph, choices)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "infer_c", module_with(load, "A"))
    path = write_engine(tmp_path / "e")
    assert f"are looked for at the first run: {path} failed on this GPU (cudaGraphInstantiate failed" in capsys.readouterr().err
    assert read_info(path).details == {}
    session, batch = backends.load(path, read_info(path), backends.LoadOptions()), random_batch([9], CONFIG.vocab_size)
    sentence = rf"the engine {path} failed on this GPU \(.*out of memory\)\); run it again, with a smaller -b"
    for call in (lambda: session.run(batch), session.timer(batch)):
        with pytest.raises(BertError, match=sentence) as caught:
            call()
        assert caught.value.status == 1
    assert not list((tmp_path / "cache").rglob("*.json"))
