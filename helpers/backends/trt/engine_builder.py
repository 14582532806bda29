# SPDX-License-Identifier: Apache-2.0
"""From weights to a plan on disk: network, profiles, builder settings, timing cache, and the metadata beside the plan."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from helpers.backends.trt import api, choice, profiles
from helpers.backends.trt.graph import Graph
from helpers.backends.trt.plugin_network import PluginNetwork
from helpers.backends.trt.progress import monitor
from helpers.backends.trt.typed_network import TypedNetwork
from helpers.config import BertConfig, BuildOptions
from helpers.engine_file import EngineInfo, written_whole
from helpers.errors import BertError, UsageError
from helpers.weights import Weights


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The GPU an engine is built for; sm is 10 times the major plus the minor compute capability."""

    name: str
    sm: int

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.sm // 10}.{self.sm % 10}"


def build(config: BertConfig, weights: Weights, options: BuildOptions, info: EngineInfo, gpu: Gpu) -> None:
    """Write the plan to options.output and its metadata to `<output>.json`; nothing is left behind when it fails."""
    trt = api.tensorrt()
    options.check(config)
    log = api.logger(trt, options.verbose)
    weak = api.weakly_typed(trt)
    kind, note = choice.choose(config, options, weak, gpu.sm)
    for line in filter(None, [note, *_unused(options, kind)]):
        say(line)
    _check_eight_bits(options, kind, gpu)
    if kind == "plugins":
        choice.require_plugins(api.load_plugins(trt, log), trt.__version__)
    builder = api.made(trt.Builder(log), "a builder")
    shapes = profiles.plan(options, kind)
    network = define(trt, builder, config, weights, options, kind, shapes)
    settings = configure(trt, builder, network.network, options, kind, shapes)
    cache = timing_cache(trt, settings, options.timing_cache)
    settings.progress_monitor = progress = monitor(trt)  # named, so that it outlives the build
    started = time.monotonic()
    plan = builder.build_serialized_network(network.network, settings)
    del progress
    if plan is None:
        first = (
            "leave out -imh, as eight-bit attention needs a fused kernel for this GPU, or " if options.force_int8_multihead else ""
        )
        raise BertError(f"TensorRT built no engine{api.last_error(log)}; {first}run again with --verbose or another precision")
    say(f"TensorRT {trt.__version__} built the engine ({'plugins' if kind == 'plugins' else 'no plugins'}) "
        f"in {time.monotonic() - started:.1f} s")  # fmt: skip
    details = {
        **info.details,
        "network": kind,
        "plugins": _generation(options) if kind == "plugins" else None,
        "flags": [flag for name, flag in FLAGS.items() if getattr(options, name)],  # for the command that builds it again
    }
    versions = {**info.versions, "tensorrt": trt.__version__}
    write(plan, options.output, dataclasses.replace(info, gpu=str(gpu), versions=versions, details=details))
    if options.timing_cache and cache is not None:
        with written_whole(options.timing_cache) as path:
            path.write_bytes(bytes(settings.get_timing_cache().serialize()))


def write(plan: Any, output: Path, info: EngineInfo) -> None:
    """Write plan and metadata, both or neither; the metadata records the plan's size, so that a stray pair is noticed."""
    data = memoryview(plan)
    info = dataclasses.replace(info, details={**info.details, "plan_bytes": data.nbytes})
    with written_whole(output) as path, written_whole(f"{output}.json") as sidecar:
        path.write_bytes(data)
        sidecar.write_text(info.to_json(), encoding="utf-8")


def define(
    trt: Any, builder: Any, config: BertConfig, weights: Weights, options: BuildOptions, kind: choice.Kind, shapes: profiles.Plan
) -> Graph:
    """Return the graph of the network; it must live until the engine is built."""
    weak = kind == "plugins" and api.weakly_typed(trt)
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED  # ignored by TensorRT 11, where every network is
    network = api.made(builder.create_network(0 if weak else 1 << int(flag)), "a network")
    graph = Graph(trt, network, np.float16 if not weak and options.fp16 else np.float32)
    if kind == "plugins":
        PluginNetwork(graph, config, weights, options, weak).build(shapes.batch, shapes.seqlen)
    else:
        TypedNetwork(graph, config, weights, options).build(shapes.batch, shapes.seqlen)
    return graph


def configure(trt: Any, builder: Any, network: Any, options: BuildOptions, kind: choice.Kind, shapes: profiles.Plan) -> Any:
    """Return the builder configuration: flags, workspace, tactic sources, profiles."""
    config = api.made(builder.create_builder_config(), "a builder configuration")
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.avg_timing_iterations = 8
    if options.verbose:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    flags = trt.BuilderFlag.__members__
    wanted = {"SPARSE_WEIGHTS": options.sparse, "DISTRIBUTIVE_INDEPENDENCE": options.distributive_independence}
    if kind == "plugins" and api.weakly_typed(trt):
        wanted |= {"FP16": options.fp16, "INT8": options.int8}
        wanted |= dict.fromkeys(("PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO", "REJECT_EMPTY_ALGORITHMS"), options.strict)
        # The plugins bring cuBLAS themselves; as a source of tactics it stays on for them as in the old demo, cuDNN off.
        sources = config.get_tactic_sources() | 1 << int(trt.TacticSource.CUBLAS)
        config.set_tactic_sources(sources & ~(1 << int(trt.TacticSource.CUDNN)))
    elif options.strict:
        config.clear_flag(trt.BuilderFlag.TF32)  # types are always obeyed here; what --strict can still mean is true FP32
    for name, on in wanted.items():
        if on and name in flags:
            config.set_flag(flags[name])
        elif on:
            say(f"TensorRT {trt.__version__} has no builder flag {name}: built without it")
    inputs = {network.get_input(i).name for i in range(network.num_inputs)}
    for bounds in shapes.profiles:
        profile = api.made(builder.create_optimization_profile(), "an optimisation profile")
        for name in (name for name in bounds if name in inputs):
            profile.set_shape(name, bounds[name].least, bounds[name].best, bounds[name].most)
        if config.add_optimization_profile(profile) < 0:
            raise BertError(f"TensorRT refused the profile {profiles.describe([bounds])}; check the -b and -s lists")
    return config


def timing_cache(trt: Any, config: Any, path: Path | None) -> Any:
    """Give the builder the timing cache of a file; one that does not fit this GPU and version is replaced, with a warning."""
    if path is None:
        return None
    path = Path(path)
    data = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        if data:
            say(f"the timing cache {path} is of another GPU or TensorRT version than {trt.__version__}: it is made anew")
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            say(f"TensorRT gives no timing cache: {path} is not written")
            return None
    return cache


def _check_eight_bits(options: BuildOptions, kind: choice.Kind, gpu: Gpu) -> None:
    if options.fp8 and gpu.sm < 89:
        raise UsageError(f"--fp8 needs compute capability 8.9 or later, this GPU is {gpu}; use --int8 or --fp16")
    if options.int8 and kind == "typed" and gpu.sm < 75:
        raise UsageError(f"--int8 needs compute capability 7.5 or later, this GPU is {gpu}; use --fp16")


def _unused(options: BuildOptions, kind: choice.Kind) -> list[str]:
    """Return a line for every option given that has nothing to do in this engine."""
    lines = {
        "-il has no effect without --int8": options.interleaved and not options.int8,
        "-il has no effect without plugins": kind == "typed" and options.int8 and options.interleaved,
        "--bf16 takes the place of --fp16": options.bf16 and options.fp16,
    }
    return [line for line, given in lines.items() if given]


FLAGS = {
    "fp16": "--fp16",
    "bf16": "--bf16",
    "int8": "--int8",
    "fp8": "--fp8",
    "strict": "--strict",
    "interleaved": "-il",
    "megatron": "--megatron",
    "sparse": "-sp",
    "force_fc2_gemm": "-g",
    "force_int8_skipln": "-iln",
    "force_int8_multihead": "-imh",
    "distributive_independence": "--distributive_independence",
    "v3_plugins": "--use-v3-plugins",
    "no_plugins": "--no-plugins",
}


def _generation(options: BuildOptions) -> str:
    return "v3" if options.v3_plugins else "deprecated"


def say(line: str) -> None:
    print(line, file=sys.stderr)
