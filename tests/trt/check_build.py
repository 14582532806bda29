# SPDX-License-Identifier: Apache-2.0
"""Builder settings, profiles, timing cache, files and refusals of the TensorRT backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import cuda_utils
from helpers.backends import trt
from helpers.backends.trt import api, choice, profiles
from helpers.backends.trt.engine_builder import Gpu
from helpers.backends.trt.engine_builder import build as build_engine
from helpers.config import BertConfig, BuildOptions
from helpers.engine_file import EngineInfo, read_info
from helpers.errors import BertError, MissingDependency, UsageError
from trt import double
from trt.harness import MAJOR, TRT, WEAK, Recorded, options
from trt.models import random_model, small
from trt.runtime_double import GPU

CONFIG = small(128, 2)
A100 = Gpu("NVIDIA A100-SXM4-40GB", 80)


def build(path: Path, gpu: Gpu = A100, config: BertConfig = CONFIG, **values: Any) -> Path:
    wanted = BuildOptions(path / "demo.engine", **values)
    info = EngineInfo("tensorrt", wanted.layout, wanted.precision, wanted.batch_sizes, wanted.sequence_lengths, config)
    build_engine(config, random_model(config), wanted, info, gpu)
    return wanted.output


def settings(**values: Any) -> Any:
    return Recorded(CONFIG, random_model(CONFIG), options(**values)).settings


# profiles -------------------------------------------------------------------------------------------------------------------


def shapes(kind: choice.Kind = "plugins", **values: Any) -> tuple[tuple[int, int], list[tuple[Any, ...]]]:
    plan = profiles.plan(options(**values), kind)
    name = "input_ids"
    return (plan.batch, plan.seqlen), [(p[name].least, p[name].best, p[name].most) for p in plan.profiles]


def check_one_size_is_static() -> None:
    assert shapes(batch_sizes=(8,), sequence_lengths=(128,)) == ((8, 128), [])


def check_several_batches_keep_the_length_static() -> None:
    expected = [((1, 128), (1, 128), (1, 128)), ((1, 128), (8, 128), (8, 128))]
    assert shapes(batch_sizes=(8, 1), sequence_lengths=(128,)) == ((-1, 128), expected)


def check_several_lengths_with_one_batch_make_both_dynamic() -> None:
    expected = [((1, 64), (4, 64), (4, 64)), ((1, 128), (4, 128), (4, 128))]
    assert shapes(batch_sizes=(4,), sequence_lengths=(128, 64)) == ((-1, -1), expected)


def check_lengths_without_plugins_reach_down_to_the_next_shorter() -> None:
    expected = [((1, 1), (4, 64), (4, 64)), ((1, 65), (4, 128), (4, 128))]
    assert shapes("typed", batch_sizes=(4,), sequence_lengths=(64, 128)) == ((-1, -1), expected)


def check_distributive_independence_has_one_profile() -> None:
    expected = [((1, 128), (8, 128), (8, 128))]
    found = shapes(batch_sizes=(1, 8), sequence_lengths=(64, 128), distributive_independence=True)
    assert found == ((-1, 128), expected)


def check_packed_profiles_are_sorted() -> None:
    plan = profiles.plan(options(layout="packed", batch_sizes=(8, 2), sequence_lengths=(100,)), "plugins")
    assert [p["input_ids"].most for p in plan.profiles] == [(200,), (800,)]
    assert [p["cu_seqlens"].most for p in plan.profiles] == [(3,), (9,)]
    assert {p["max_seqlen"].most for p in plan.profiles} == {(100,)}


def check_profiles_the_double_refuses() -> None:
    """The rule of TensorRT that the old builder broke: a static axis has one size in all three shapes."""
    recorded = Recorded(CONFIG, random_model(CONFIG), options(batch_sizes=(1, 4)))
    recorded.settings.profiles[0].props["input_ids"] = ((1, 32), (1, 64), (1, 64))
    with pytest.raises(TypeError, match="profile of input_ids"):
        double.check_profiles(recorded.graph.network, recorded.settings)


# settings -------------------------------------------------------------------------------------------------------------------


def check_flags() -> None:
    found = settings(fp16=True, int8=True, strict=True, sparse=True, distributive_independence=True, workspace_mib=300)
    common = {"SPARSE_WEIGHTS", "DISTRIBUTIVE_INDEPENDENCE"}
    weak = {"FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO", "REJECT_EMPTY_ALGORITHMS", "TF32"}
    assert found.flags_set == common | (weak if WEAK else set())
    assert found.pools == {"WORKSPACE": 300 << 20}
    assert found.props["avg_timing_iterations"] == 8


def check_no_plugins_sets_no_precision_flags() -> None:
    assert settings(fp16=True, int8=True, no_plugins=True).flags_set == {"TF32"}
    recorded = Recorded(CONFIG, random_model(CONFIG), options(fp16=True, no_plugins=True))
    assert recorded.graph.network.strong


@pytest.mark.skipif(not WEAK, reason="TensorRT 11 has no library tactics to choose")
def check_tactic_sources() -> None:
    sources, names = settings(fp16=True).sources, TRT.TacticSource
    assert sources >> int(names.CUBLAS) & 1 and not sources >> int(names.CUDNN) & 1


def check_verbose_keeps_layer_details() -> None:
    assert settings(verbose=True).props["profiling_verbosity"] == TRT.ProfilingVerbosity.DETAILED


def check_timing_cache_is_created_reused_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "caches" / "build.tcf"
    build(tmp_path, timing_cache=cache)
    first = cache.read_bytes()
    assert first.startswith(b"cache of this GPU")
    build(tmp_path, timing_cache=cache)
    assert cache.read_bytes() != first and "another GPU" not in capsys.readouterr().err
    cache.write_bytes(b"cache of another GPU")
    build(tmp_path, timing_cache=cache)
    assert "is of another GPU or TensorRT version" in capsys.readouterr().err
    assert cache.read_bytes() == b"cache of this GPU, 0"


# files ----------------------------------------------------------------------------------------------------------------------


def check_plan_and_metadata(tmp_path: Path) -> None:
    path = build(tmp_path, fp16=True, batch_sizes=(4,), sequence_lengths=(72,))
    info = read_info(path)
    assert (info.gpu, info.versions["tensorrt"]) == ("NVIDIA A100-SXM4-40GB, compute capability 8.0", TRT.__version__)
    assert info.details["plan_bytes"] == path.stat().st_size and path.read_bytes().startswith(b"ptrt")
    assert info.details["network"] == ("plugins" if WEAK else "typed")
    assert json.loads(Path(f"{path}.json").read_text())["backend"] == "tensorrt"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.engine", "demo.engine.json"]


def check_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(double.HOOKS, "Builder.build_serialized_network", lambda network, config: None)
    with pytest.raises(BertError, match="TensorRT built no engine"):
        build(tmp_path)
    assert not list(tmp_path.iterdir())


def check_refused_layer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(double.HOOKS, "INetworkDefinition.add_activation", lambda input, type: None)
    with pytest.raises(BertError, match="refused to make the activation"):
        build(tmp_path)


# what the plugins cannot take ------------------------------------------------------------------------------------------------

HEAD32, WIDE = small(64, 2), small(768, 12, inner=256)
REFUSED: list[tuple[BertConfig, dict[str, Any], int, str]] = [
    (HEAD32, {"fp16": True, "sequence_lengths": (128,)}, 80, "needs head size 64, the model has 32"),
    (CONFIG, {"fp16": True, "sequence_lengths": (512,)}, 90, "length 512"),
    (CONFIG, {"fp16": True, "bf16": True}, 80, "BF16"),
    (CONFIG, {"layout": "packed"}, 80, "needs --fp16 or --int8"),
    (HEAD32, {"layout": "packed", "fp16": True}, 80, "head size 64"),
    (CONFIG, {"layout": "packed", "fp16": True, "sequence_lengths": (385,)}, 80, "ends at 384"),
    (CONFIG, {"layout": "packed", "fp16": True}, 70, "compute capability 7.5"),
]
REFUSED_INT8: list[tuple[BertConfig, dict[str, Any], int, str]] = [
    (CONFIG, {"force_int8_skipln": True}, 80, "-iln needs hidden size 768 or 1024, the model has 128"),
    (HEAD32, {"force_int8_multihead": True, "sequence_lengths": (128,)}, 80, "-imh needs head size 64"),
    (CONFIG, {"force_int8_multihead": True, "sequence_lengths": (64,)}, 80, "128 or 384"),
    (CONFIG, {"force_int8_multihead": True, "sequence_lengths": (128, 384)}, 80, "one sequence length"),
    (CONFIG, {}, 70, "7.5 or later, this GPU has 7.0"),
    (CONFIG, {"layout": "packed", "interleaved": True}, 80, "-il needs hidden size 768 or 1024"),
    (WIDE, {"layout": "packed", "interleaved": True, "sequence_lengths": (400,)}, 80, "ends at 384"),
]


@pytest.mark.parametrize("generation", [{"v3_plugins": True}, {"extra": {"deprecated_plugins": True}}], ids=["v3", "deprecated"])
@pytest.mark.parametrize(("config", "wanted", "sm", "reason"), REFUSED, ids=[row[3] for row in REFUSED])
def check_refused_with_the_way_out(
    config: BertConfig, wanted: dict[str, Any], sm: int, reason: str, generation: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"{reason}.*--no-plugins"):
        choice.choose(config, options(**wanted, **generation), WEAK, sm)


@pytest.mark.parametrize(("config", "wanted", "sm", "reason"), REFUSED_INT8, ids=[row[3] for row in REFUSED_INT8])
def check_refused_int8(config: BertConfig, wanted: dict[str, Any], sm: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason if WEAK else "TensorRT 11 no longer has"):
        choice.choose(config, options(int8=True, v3_plugins=True, **wanted), WEAK, sm)


@pytest.mark.parametrize(("config", "wanted", "sm", "reason"), REFUSED, ids=[row[3] for row in REFUSED])
def check_default_takes_the_way_out_and_says_so(config: BertConfig, wanted: dict[str, Any], sm: int, reason: str) -> None:
    kind, note = choice.choose(config, options(**wanted), WEAK, sm)
    assert kind == "typed"
    assert (reason in note and "without plugins" in note) if WEAK else note == ""


def check_eight_bits_need_the_hardware(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--fp8 needs compute capability 8.9 or later, this GPU is NVIDIA A100.*8\.0"):
        build(tmp_path, fp8=True)
    with pytest.raises(UsageError, match="--int8 needs compute capability 7.5"):
        build(tmp_path, Gpu("Tesla V100", 70), int8=True, no_plugins=True)


def check_options_without_effect_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, layout="packed", interleaved=True)
    assert "-il has no effect without --int8" in capsys.readouterr().err


# what is missing --------------------------------------------------------------------------------------------------------------


def check_plugin_library_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TRT, "init_libnvinfer_plugins", lambda logger, namespace: False)
    with pytest.raises(MissingDependency, match="libnvinfer_plugin.*--no-plugins"):
        build(tmp_path, v3_plugins=True)


def check_old_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRT, "__version__", "8.6.1")
    with pytest.raises(MissingDependency, match="8.6.1 is too old.*pip install tensorrt"):
        api.tensorrt()


def check_this_version() -> None:
    assert api.version(TRT)[0] == MAJOR and api.weakly_typed(TRT) == WEAK


def check_backend_finds_gpu_and_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_utils, "open_gpu", lambda library="auto": GPU)
    trt.check()
    wanted = BuildOptions(tmp_path / "engines" / "demo.engine")
    trt.build(CONFIG, random_model(CONFIG), wanted, EngineInfo("tensorrt", "padded", "fp32", (1,), (128,), CONFIG))
    assert wanted.output.exists()
