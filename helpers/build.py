# SPDX-License-Identifier: Apache-2.0
"""What builder.py and builder_varseqlen.py do: read a checkpoint, find its ranges, hand both to a backend."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from helpers import __version__, backends, verify
from helpers.cli import log, progress_bar
from helpers.config import BertConfig, BuildOptions, Layout
from helpers.engine_file import EngineInfo, check_writable, drop_stale_sidecar, sidecar
from helpers.engine_text import check_vocabulary
from helpers.errors import BertError, UsageError
from helpers.files import check_apart, is_file
from helpers.tokenization import FullTokenizer
from helpers.weights import Weights
from helpers.weights.names import activation_ranges, expected_shapes

CALIBRATION = {
    "calibrate": "--calibrate",
    "calib_num": "-n/--calib-num",
    "calib_path": "-p/--calib-path",
    "calib_percentile": "--calib-percentile",
    "squad_json": "-j/--squad-json",
}
SOURCES = {
    "ckpt": "-m/--ckpt",
    "onnx": "-x/--onnx",
    "pytorch": "-pt/--pytorch",
    "pickle": "-pkl/--pickle",
    "hf": "--hf",
    "random_weights": "--random-weights",
}
# What the readers open of a model's directory and of a TensorFlow checkpoint.
MODEL_FILES = (
    *("bert_config.json", "config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"),
    *("model.safetensors", "pytorch_model.bin"),
)
CHECKPOINT_ENDS = (".index", ".data-00000-of-00001")
ROOT = Path(__file__).resolve().parent.parent


def main(command: str, args: argparse.Namespace) -> None:
    """Build the engine that the command line describes."""
    layout: Layout = "packed" if command == "builder_varseqlen" else "padded"
    options = build_options(args, layout)
    directory = args.config_dir or args.hf
    if directory is None:
        raise UsageError("no model configuration is given; give the directory of bert_config.json with -c/--config-dir")
    config = BertConfig.from_dir(directory)
    options.check(config)
    check_writable(options.output)
    log(f"model configuration: {directory}")
    backend = backends.choose(args.backend)
    log(f"backend: {backend}")
    written = [
        ("-o/--output", args.output),
        ("-p/--calib-path", args.calib_path),
        ("-tcf/--timing-cache-file", args.timing_cache_file),
    ]
    if backend == "tensorrt":
        written.append(("the engine's metadata", sidecar(options.output)))
    check_apart(files_read(args), written)
    backends.check_options(backend, options, log)
    try:
        _build(backend, config, options, args)
    except MemoryError as error:
        count = sum(math.prod(shape) for shape in expected_shapes(config).values())
        raise BertError(
            f"out of memory: the model's {count:,} parameters take {count * 4 / 2**30:.1f} GiB in FP32, building several times "
            "that; free some memory, or build on a larger machine"
        ) from error


def _build(backend: str, config: BertConfig, options: BuildOptions, args: argparse.Namespace) -> None:
    began = time.perf_counter()
    weights = read_weights(config, args)
    log(f"weights: {len(weights.tensors)} tensors, {len(weights.ranges)} ranges from {weights.source}")
    tokenizer = read_tokenizer(config, args)
    questions = None
    if args.verify:
        questions = verify.prepare(args.verify, squad_file(args.squad_json), backend, options, tokenizer)
    elif args.verify_limit is not None:
        log("--verify-limit has no effect without --verify")
    if options.int8 or options.fp8:
        weights = with_ranges(config, weights, tokenizer, args, max(options.sequence_lengths))
    else:
        say_unused(args, "without --int8 or --fp8")
    info = EngineInfo(
        backend=backend,
        layout=options.layout,
        precision=options.precision,
        batch_sizes=options.batch_sizes,
        sequence_lengths=options.sequence_lengths,
        config=config,
        vocab=tokenizer.vocab if tokenizer else None,
        lower_case=tokenizer.lower_case if tokenizer else args.lower_case is not False,
        weights_digest=weights.digest(),
        weights_source=weights.source,
        versions=versions(),
        details={"fp16": options.fp16 or options.bf16},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    log(f"building: {info.describe()}")
    backends.module(backend).build(config, weights, options, info)
    if drop_stale_sidecar(options.output):
        log(f"removed {sidecar(options.output)}, which described an older TensorRT engine of this name")
    size = options.output.stat().st_size / 2**20
    log(f"saved {options.output} ({size:.1f} MiB) after {time.perf_counter() - began:.1f} s; done")
    if questions:
        verify.verify(options.output, config, weights, questions, verify.LIMIT if args.verify_limit is None else args.verify_limit)


def files_read(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """Return the files that the command line gives, each with its option: named, or part of a checkpoint or a directory."""
    given = vars(args)
    options = {**SOURCES, "vocab_file": "-v/--vocab-file", "squad_json": "-j/--squad-json"}
    named = [(flag, Path(given[name])) for name, flag in options.items() if name != "random_weights" and given.get(name)]
    named += [("-m/--ckpt", Path(f"{args.ckpt}{end}")) for end in CHECKPOINT_ENDS if args.ckpt]
    directories = [("-c/--config-dir", args.config_dir), ("--hf", args.hf)]
    return named + [(flag, Path(directory, name)) for flag, directory in directories if directory for name in MODEL_FILES]


def build_options(args: argparse.Namespace, layout: Layout) -> BuildOptions:
    """Return what the command line asks of a backend; raise UsageError where it contradicts itself."""
    if args.fp32 and (args.fp16 or args.bf16 or args.int8 or args.fp8):
        raise UsageError("--fp32 asks for 32-bit arithmetic only; leave out --fp16, --bf16, --int8 and --fp8")
    if layout == "packed":
        batch_sizes, lengths = args.max_batch_size or [1], [args.max_sequence_length]
    else:
        batch_sizes, lengths = args.batch_size or [1], args.sequence_length or [128]
    given = vars(args)
    return BuildOptions(
        output=Path(args.output),
        layout=layout,
        fp16=args.fp16,
        bf16=args.bf16,
        int8=args.int8,
        fp8=args.fp8,
        batch_sizes=tuple(sorted(set(batch_sizes))),
        sequence_lengths=tuple(sorted(set(lengths))),
        strict=args.strict,
        workspace_mib=args.workspace_size or (2500 if layout == "padded" else None),
        interleaved=given.get("interleaved", False),
        megatron=given.get("megatron", False),
        sparse=args.sparse,
        force_fc2_gemm=given.get("force_fc2_gemm", False),
        force_int8_skipln=given.get("force_int8_skipln", False),
        force_int8_multihead=given.get("force_int8_multihead", False),
        timing_cache=Path(args.timing_cache_file) if args.timing_cache_file else None,
        distributive_independence=given.get("distributive_independence", False),
        verbose=args.verbose,
        v3_plugins=args.use_v3_plugins,
        no_plugins=args.no_plugins,
        extra={"deprecated_plugins": args.use_deprecated_plugins},  # asked for by name, not by default
    )


def read_weights(config: BertConfig, args: argparse.Namespace) -> Weights:
    """Read the one source of weights that is given; raise UsageError for none or several."""
    given = [name for name in SOURCES if getattr(args, name, None) is not None]
    if len(given) != 1:
        options = " and ".join(SOURCES[name] for name in given)
        what = f"{options} are given" if given else "no weights are given"
        raise UsageError(f"{what}; give one of -m/--ckpt, -x/--onnx, -pt/--pytorch, --hf or --random-weights")
    source, value = given[0], getattr(args, given[0])
    from helpers.weights import huggingface, onnx_model, pytorch, random_weights, tf_checkpoint

    readers: dict[str, Callable[[BertConfig, Any], Weights]] = {
        "ckpt": tf_checkpoint.read,
        "onnx": onnx_model.read,
        "pytorch": pytorch.read,
        "pickle": pytorch.read_megatron,
        "hf": huggingface.read,
        "random_weights": random_weights.make,
    }
    return readers[source](config, value)


def read_tokenizer(config: BertConfig, args: argparse.Namespace) -> FullTokenizer | None:
    """Return the tokenizer whose vocabulary the engine will carry; None where there is no vocab.txt."""
    from helpers.weights import huggingface

    directory = args.config_dir or args.hf
    tokenizer = (
        FullTokenizer.from_file(args.vocab_file, args.lower_case)
        if args.vocab_file
        else huggingface.tokenizer(args.hf or directory, args.lower_case)
    )
    if tokenizer is None:
        log(f"no vocabulary: {directory} has no vocab.txt and -v is not given; the inference scripts will need -v")
        return None
    check_vocabulary(tokenizer, config, f"the vocabulary {args.vocab_file or directory}")
    log(f"vocabulary: {len(tokenizer.ids)} tokens, {'uncased' if tokenizer.lower_case else 'cased'}")
    return tokenizer


def with_ranges(
    config: BertConfig, weights: Weights, tokenizer: FullTokenizer | None, args: argparse.Namespace, length: int
) -> Weights:
    """Return the weights with a range for every activation: their own, a cache's, or ones measured now."""
    if not args.calibrate and all(name in weights.ranges for name in activation_ranges(config)):
        log("ranges: those of the weights")
        say_unused(args, "on weights with ranges; give --calibrate to measure them anew")
        return weights
    from helpers import calibrator

    percentile = calibrator.PERCENTILE if args.calib_percentile is None else args.calib_percentile
    count = calibrator.QUESTIONS if args.calib_num is None else args.calib_num
    kernels = {name: amax for name, amax in weights.ranges.items() if name.endswith("_kernel_amax")}
    if args.random_weights is not None:
        log("ranges: measured on random ids")
        say_unused(args, "on random weights", ("calib_num", "calib_path", "squad_json"))
        ranges = calibrator.measure(config, weights, calibrator.random_batches(config, length), percentile)
        return Weights(weights.tensors, {**kernels, **ranges}, weights.source)
    if tokenizer is None:
        raise UsageError("calibration needs the model's vocabulary; give vocab.txt with -v/--vocab-file")
    squad = squad_file(args.squad_json)
    settings = calibrator.settings_of(tokenizer, squad, count, length, percentile)
    cache = Path(args.calib_path) if args.calib_path else calibrator.default_cache(config, weights, length)
    if is_file(cache, "calibration cache"):
        ranges = calibrator.read_cache(cache, weights, settings, config)
        log(f"ranges: calibration cache {cache}")
    else:
        check_writable(cache)
        batches = calibrator.text_batches(squad, tokenizer, count, length)
        log(f"ranges: measured on {len(batches)} questions of {squad}")
        with progress_bar(len(batches), "questions") as bar:
            ranges = calibrator.measure(config, weights, batches, percentile, bar.update)
        calibrator.write_cache(cache, weights, settings, ranges)
        log(f"calibration cache: {cache}")
    return Weights(weights.tensors, {**kernels, **ranges}, weights.source)


def say_unused(args: argparse.Namespace, reason: str, names: Iterable[str] = CALIBRATION) -> None:
    """Say of every calibration option given that it has no effect."""
    for name in names:
        if getattr(args, name) and not (name == "squad_json" and args.verify):  # --verify asks its questions
            log(f"{CALIBRATION[name]} has no effect {reason}")


def squad_file(given: str | None) -> Path:
    """Return the text to calibrate on: the given file, the documented default, or the sample that is part of this package."""
    if given:
        return Path(given)
    for path in (Path("squad/dev-v1.1.json"), ROOT / "squad" / "dev-v1.1.json"):
        if path.is_file():
            return path
    return Path(__file__).with_name("dev-sample-1000.json")


def versions() -> dict[str, str]:
    """Return this project's version and those of the libraries an engine may depend on."""
    found = {"demobert": __version__}
    for name in ("numpy", "onnx", "openvino", "onnxruntime", "tensorrt"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
