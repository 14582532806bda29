# SPDX-License-Identifier: Apache-2.0
"""cpu engines, run by both runtimes, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import MODEL, ONNX, assert_close, relative_error, small_config, small_weights
from helpers import backends, calibrator
from helpers.backends import LoadOptions, cpu
from helpers.batching import random_batch
from helpers.config import BertConfig, BuildOptions
from helpers.engine_file import EngineInfo, read_info
from helpers.errors import EngineMismatch, UsageError
from helpers.reference import Reference
from helpers.weights import Weights
from helpers.weights.names import expected_shapes

RUNTIMES = ("openvino", "onnxruntime")
LENGTHS = [1, 17, 33, 64]


def build(path: Path, config: BertConfig, weights: Weights, **flags: bool) -> Path:
    options = BuildOptions(path, sequence_lengths=(64,), **flags)  # type: ignore[arg-type]
    info = EngineInfo("cpu", "padded", options.precision, (1,), (64,), config, details={"fp16": options.fp16})
    cpu.build(config, weights, options, info)
    return path


def run(path: Path, runtime: str, batch, **options) -> np.ndarray:
    session = backends.load(path, read_info(path), LoadOptions(cpu_runtime=runtime, log=lambda line: None, **options))
    return session.run(batch)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("heads", "head_size", "activation"), [(2, 16, "gelu_tanh"), (3, 8, "gelu_erf"), (1, 64, "gelu_tanh")])
def test_fp32_logits_are_the_references(tmp_path, runtime: str, heads: int, head_size: int, activation: str) -> None:
    config = small_config(heads, head_size, activation=activation)
    weights = small_weights(config)
    batch = random_batch(LENGTHS, config.vocab_size)
    path = build(tmp_path / "e", config, weights)
    assert_close(run(path, runtime, batch), Reference(config, weights, np.float64)(batch), 1e-4)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_fp32_logits_of_the_repositorys_model(engines, config, weights, runtime: str) -> None:
    batch = random_batch([5, 64, 21], config.vocab_size)
    assert_close(run(engines["fp32"], runtime, batch), Reference(config, weights)(batch), 1e-4)


def test_16_bit_logits_are_near(engines, config, weights) -> None:
    batch = random_batch([5, 64, 21], config.vocab_size)
    assert_close(run(engines["fp16"], "openvino", batch), Reference(config, weights)(batch), 3e-2)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("everywhere", [False, True], ids=["products", "everywhere"])
def test_int8_logits_are_the_simulations(tmp_path, runtime: str, everywhere: bool) -> None:
    """`everywhere` quantises attention and residual sums too (-imh -iln), as the simulation does when it gets all ranges."""
    config = small_config(2, 32)
    weights = small_weights(config)
    batch = random_batch(LENGTHS, config.vocab_size)
    ranges = calibrator.measure(config, weights, [batch], 100)
    weights = Weights(weights.tensors, ranges)
    path = build(tmp_path / "e", config, weights, int8=True, force_int8_multihead=everywhere, force_int8_skipln=everywhere)
    kernels = {f"{name}_amax": np.abs(array).max(1) for name, array in weights.tensors.items() if name.endswith("_kernel")}
    used = {name: amax for name, amax in ranges.items() if (everywhere or name.endswith("_input_amax")) and "final" not in name}
    simulated = Reference(config, weights, ranges={**used, **kernels})(batch)
    found = run(path, runtime, batch)
    quantisation = relative_error(Reference(config, weights)(batch), simulated)
    # Rounding ties fall either way, so not exact; but far nearer to the simulation than the float model is.
    assert_close(found, simulated, max(0.02, 0.5 * quantisation))


def test_int8_products_are_stored_as_int8(engines) -> None:
    import onnx

    model = onnx.load(engines["int8"])
    kinds = {i.name: i.data_type for i in model.graph.initializer}
    assert kinds["l0_qkv_kernel_int8"] == onnx.TensorProto.INT8
    assert engines["int8"].stat().st_size < 0.7 * engines["fp32"].stat().st_size
    onnx.checker.check_model(model)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_batch_equals_single(engines, config, runtime: str) -> None:
    session = backends.load(engines["fp32"], read_info(engines["fp32"]), LoadOptions(cpu_runtime=runtime))
    lengths = [50, 3, 20]
    batch = random_batch(lengths, config.vocab_size)
    together = session.run(batch)
    for number, (begin, end) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
        single = type(batch)(batch.ids[begin:end], batch.segments[begin:end], np.array([0, end - begin], np.int32), lengths[number])
        assert_close(session.run(single), together[begin:end], 1e-4)


def test_both_runtimes_agree_on_every_engine(engines, config) -> None:
    batch = random_batch([60, 31, 8], config.vocab_size)
    for name, limit in (("fp32", 1e-4), ("packed", 1e-4), ("int8", 0.05)):
        assert_close(run(engines[name], "openvino", batch), run(engines[name], "onnxruntime", batch), limit)


def test_sessions_may_be_run_from_several_threads(engines, config) -> None:
    from concurrent.futures import ThreadPoolExecutor

    session = backends.load(engines["fp32"], read_info(engines["fp32"]), LoadOptions())
    batches = [random_batch([10 + i, 20], config.vocab_size, seed=i) for i in range(8)]
    expected = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(session.run, batches * 3), expected * 3, strict=True):
            assert_close(found, right, 1e-5)


def test_a_damaged_engine_is_refused(engines, tmp_path) -> None:
    whole = engines["fp32"].read_bytes()
    cut = tmp_path / "cut.engine"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineMismatch, match="cut.engine.*build it again"):
        read_info(cut)
    info = read_info(engines["fp32"])
    for runtime in RUNTIMES:
        with pytest.raises(EngineMismatch, match="cannot load the engine .*cut.engine.*; build it again"):
            cpu.load(cut, info, LoadOptions(cpu_runtime=runtime))


def test_a_runtime_that_there_is_not(engines) -> None:
    with pytest.raises(UsageError, match="there is no --cpu-runtime foo; give auto, openvino or onnxruntime"):
        backends.load(engines["fp32"], read_info(engines["fp32"]), LoadOptions(cpu_runtime="foo"))


@pytest.mark.parametrize(("layers", "remedy"), [(60, "build with --backend cuda or --int8"), (700, "build with --backend cuda$")])
def test_an_engine_above_the_limit_of_its_format_is_refused(tmp_path, layers: int, remedy: str) -> None:
    """Weights of 2.8 and 33 GiB that take none: views of one number."""
    config = small_config(16, 64, layers)
    one = np.ones(1, np.float32)
    tensors = {name: np.broadcast_to(one, shape) for name, shape in expected_shapes(config).items()}
    with pytest.raises(UsageError, match=f"the cpu engine would have .* GiB, and ONNX files end at 2 GiB; {remedy}"):
        build(tmp_path / "e", config, Weights(tensors))
    assert list(tmp_path.iterdir()) == []


def test_options_of_other_backends_are_said_to_have_no_effect(script, tmp_path) -> None:
    more = ("--strict", "-sp", "-g", "-tcf", "cache", "-imh")
    ended = script("builder", "-x", ONNX, "-c", MODEL, "-o", tmp_path / "e", "--int8", "--backend", "cpu", *more)
    assert ended.status == 0
    for flag in ("-t/--strict", "-sp/--sparse", "-g/--force-fc2-gemm", "-tcf/--timing-cache-file"):
        assert f"{flag} has no effect on cpu engines" in ended.err
    assert "multihead has no effect" not in ended.err


WITHOUT = "without --int8 or --fp8"
BROUGHT = "on weights with ranges; give --calibrate to measure them anew"


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        (ONNX, "-iln -imh", {"-iln/--force-int8-skipln": WITHOUT, "-imh/--force-int8-multihead": WITHOUT}),
        (ONNX, "--calibrate -n 100 -p c", {"--calibrate": WITHOUT, "-n/--calib-num": WITHOUT, "-p/--calib-path": WITHOUT}),
        (ONNX, "--calib-percentile 99 -j s", {"--calib-percentile": WITHOUT, "-j/--squad-json": WITHOUT}),
        (ONNX, "--int8 -n 5 -p c", {"-n/--calib-num": BROUGHT, "-p/--calib-path": BROUGHT}),
        (ONNX, "--int8 --calib-percentile 99 -j s", {"--calib-percentile": BROUGHT, "-j/--squad-json": BROUGHT}),
        (None, "--int8 --calibrate -n 5 --calib-percentile 99", {"-n/--calib-num": "on random weights"}),
    ],
)
def test_options_that_change_nothing_are_said_to_have_no_effect(script, tmp_path, monkeypatch, source, more: str, said) -> None:
    monkeypatch.setattr(cpu, "build", lambda config, weights, options, info: options.output.touch())
    weights = ("-x", source) if source else ("--random-weights", 1)
    ended = script("builder", *weights, "-c", MODEL, "-s", 16, "-o", tmp_path / "e", "--backend", "cpu", *more.split())
    assert ended.status == 0, ended.err
    assert notes(ended.err) == [f"{flag} has no effect {reason}" for flag, reason in said.items()]


def test_so_are_those_of_a_run(script, engines) -> None:
    asked = script("inference_c", "-e", engines["fp32"], "-p", "a", "-q", "b", "--null-threshold", 0, "--enable-graph")
    assert notes(asked.err) == ["--null-threshold has no effect without --squad-v2", "--enable-graph has no effect on cpu engines"]
    assert asked.status == 0
    run = ("-e", engines["fp32"], "-s", 16, "-i", 1, "-w", 0)
    assert notes(script("perf", *run, "--enable-graph").err) == ["--enable-graph has no effect on cpu engines"]
    assert notes(script("perf", *run, "--threads", 1).err) == []


def notes(text: str) -> list[str]:
    return [line for line in text.splitlines() if "no effect" in line]


def test_bf16_is_16_bit_arithmetic(script, tmp_path) -> None:
    assert script("builder", "-x", ONNX, "-c", MODEL, "-o", tmp_path / "e", "--bf16", "--backend", "cpu").status == 0
    info = read_info(tmp_path / "e")
    assert info.precision == "bf16"
    log: list[str] = []
    backends.load(tmp_path / "e", info, LoadOptions(cpu_runtime="openvino", log=log.append))
    assert "16-bit" in log[0]
