# SPDX-License-Identifier: Apache-2.0
"""Every command-line option, declared once: names, type, default, help, and which commands take it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from helpers import __version__
from helpers.arguments import Parser, number, whole

BUILDERS = ("builder", "builder_varseqlen")
INFERENCES = ("inference", "inference_varseqlen", "inference_c")
PERFS = ("perf", "perf_varseqlen")
COMMANDS = {
    "builder": "Build an engine of fixed sequence lengths from a BERT checkpoint.",
    "builder_varseqlen": "Build an engine for packed sequences of any length from a BERT checkpoint.",
    "inference": "Answer questions on a passage, or all questions of a SQuAD file.",
    "inference_varseqlen": "Answer questions with an engine for packed sequences, or all questions of a SQuAD file.",
    "inference_c": "Answer questions through the C++ runner, with a CUDA graph on request.",
    "perf": "Measure the latency and the throughput of an engine at full sequence length.",
    "perf_varseqlen": "Measure the latency and the throughput of an engine on sequences of mixed lengths.",
}


@dataclass(frozen=True)
class Option:
    """One option: what argparse needs, and the commands that have it."""

    flags: tuple[str, ...]
    commands: tuple[str, ...]
    settings: dict[str, Any]
    group: str = ""  # options of one group exclude each other


def _option(*flags: str, on: tuple[str, ...] | str, group: str = "", **settings: Any) -> Option:
    return Option(flags, (on,) if isinstance(on, str) else on, settings, group)


_FLAG = {"action": "store_true"}

OPTIONS = (
    # Where the weights come from
    _option("-m", "--ckpt", on=BUILDERS, metavar="PREFIX", help="TensorFlow checkpoint, without .index or .data"),
    _option("-x", "--onnx", on=BUILDERS, metavar="FILE", help="ONNX model; quantisation-aware ones bring their INT8 ranges"),
    _option("-pt", "--pytorch", on=BUILDERS, metavar="FILE", help="PyTorch state dict (.pt, .bin) or .safetensors"),
    _option("-pkl", "--pickle", on="builder_varseqlen", metavar="FILE", help="Megatron weight dictionary"),
    _option("--hf", on=BUILDERS, metavar="DIR", help="Hugging Face model directory; stands for -pt, -c and -v together"),
    _option(
        "--random-weights",
        on=BUILDERS,
        type=whole(0),
        metavar="SEED",
        help="made-up weights, to benchmark any bert_config.json",
    ),
    _option("-c", "--config-dir", on=BUILDERS, metavar="DIR", help="directory that holds bert_config.json (needed unless --hf)"),
    _option(
        "-v",
        "--vocab-file",
        on=BUILDERS,
        metavar="FILE",
        help="WordPiece vocabulary, kept in the engine (default: vocab.txt in -c)",
    ),
    # What is built
    _option("-o", "--output", on=BUILDERS, required=True, metavar="FILE", help="engine file to write"),
    _option(
        "--backend",
        on=BUILDERS,
        choices=("auto", "tensorrt", "cuda", "cpu"),
        default="auto",
        help="what is to run the engine (default: the first of tensorrt, cuda, cpu that works on this machine)",
    ),
    _option(
        "-b",
        "--batch-size",
        on="builder",
        type=whole(1),
        action="append",
        metavar="N",
        help="batch size to optimise for; repeatable (default: 1)",
    ),
    _option(
        "-s",
        "--sequence-length",
        on="builder",
        type=whole(5),
        action="append",
        metavar="N",
        help="sequence length to optimise for; repeatable (default: 128)",
    ),
    _option(
        "-b",
        "--max-batch-size",
        on="builder_varseqlen",
        type=whole(1),
        action="append",
        metavar="N",
        help="largest batch size; repeatable, each value gives a profile (default: 1)",
    ),
    _option(
        "-s",
        "--max-sequence-length",
        on="builder_varseqlen",
        type=whole(5),
        default=128,
        metavar="N",
        help="longest sequence (default: 128)",
    ),
    _option("--fp32", on=BUILDERS, help="32-bit arithmetic: the default", **_FLAG),
    _option(
        "-f", "--fp16", on=BUILDERS, help="allow 16-bit arithmetic (on CPUs bfloat16 or float16, where the CPU has it)", **_FLAG
    ),
    _option("--bf16", on=BUILDERS, help="16-bit arithmetic as bfloat16 (TensorRT without plugins, CPUs)", **_FLAG),
    _option(
        "-i", "--int8", on=BUILDERS, help="allow INT8, with the weights' own ranges or calibrated ones (cuda: Hopper)", **_FLAG
    ),
    _option(
        "--fp8",
        on=BUILDERS,
        help="allow FP8, with the same ranges (TensorRT: compute capability 8.9 and later; cuda: Hopper)",
        **_FLAG,
    ),
    _option("-t", "--strict", on=BUILDERS, help="obey precision requests (TensorRT)", **_FLAG),
    _option(
        "-w",
        "--workspace-size",
        on=BUILDERS,
        type=whole(1),
        metavar="MIB",
        help="TensorRT workspace (default: 2500; varseqlen: no limit)",
    ),
    _option("-iln", "--force-int8-skipln", on="builder", help="8 bits into the residual additions", **_FLAG),
    _option("-imh", "--force-int8-multihead", on="builder", help="8 bits into and out of the attention (not cuda)", **_FLAG),
    _option("-g", "--force-fc2-gemm", on="builder", help="second feed-forward product as a 16-bit GEMM (TensorRT)", **_FLAG),
    _option("-il", "--interleaved", on="builder_varseqlen", help="interleaved INT8 layout (TensorRT)", **_FLAG),
    _option(
        "--megatron", on="builder_varseqlen", help="Megatron residual structure (TensorRT; plugins want --int8 and -il)", **_FLAG
    ),
    _option("-sp", "--sparse", on=BUILDERS, help="let TensorRT use 2:4 sparsity of the weights", **_FLAG),
    _option("-tcf", "--timing-cache-file", on=BUILDERS, metavar="FILE", help="TensorRT timing cache, read if present and written"),
    _option("--distributive_independence", on="builder", help="TensorRT builder flag of that name; one profile", **_FLAG),
    _option("--verbose", on=BUILDERS, help="log all TensorRT says", **_FLAG),
    _option("--use-v3-plugins", on=BUILDERS, group="plugins", help="TensorRT plugins of the V3 interface", **_FLAG),
    _option(
        "--use-deprecated-plugins", on=BUILDERS, group="plugins", help="TensorRT plugins of the V2 interface: the default", **_FLAG
    ),
    _option(
        "--no-plugins", on=BUILDERS, group="plugins", help="strongly typed TensorRT network; always so on TensorRT 11", **_FLAG
    ),
    # Calibration
    _option(
        "-j",
        "--squad-json",
        on=BUILDERS,
        metavar="FILE",
        help="questions to calibrate on and to verify with (default: squad/dev-v1.1.json, else the sample)",
    ),
    _option("-n", "--calib-num", on=BUILDERS, type=whole(1), metavar="N", help="questions to calibrate on (default: 100)"),
    _option("-p", "--calib-path", on=BUILDERS, metavar="FILE", help="calibration cache (default: a name with the model's digest)"),
    _option("--calibrate", on=BUILDERS, help="measure the ranges even if the weights bring some", **_FLAG),
    _option(
        "--calib-percentile",
        on=BUILDERS,
        type=number(50, 100),
        metavar="P",
        help="share of values inside the range, in percent; 100 is the maximum (default: 99.999)",
    ),
    # Verification
    _option(
        "--verify", on=BUILDERS, type=whole(1), metavar="N", help="ask the new engine N SQuAD questions, the FP32 reference too"
    ),
    _option(
        "--verify-limit",
        on=BUILDERS,
        type=number(),
        metavar="X",
        help="with --verify: fail when F1 lies more than X points below the reference's (default: 1)",
    ),
    # Engine and text
    _option("-e", "--engine", on=INFERENCES + PERFS, required=True, metavar="FILE", help="engine file"),
    _option("-p", "--passage", on=INFERENCES, nargs="*", metavar="WORD", help="passage text"),
    _option("-pf", "--passage-file", on=INFERENCES, metavar="FILE", help="file that holds the passage"),
    _option("-q", "--question", on=INFERENCES, nargs="*", metavar="WORD", help="question text"),
    _option("-qf", "--question-file", on=INFERENCES, metavar="FILE", help="file that holds the question"),
    _option("-sq", "--squad-json", on=INFERENCES, metavar="FILE", help="answer all questions of a SQuAD file"),
    _option(
        "-o",
        "--output-prediction-file",
        on=INFERENCES,
        default="./predictions.json",
        metavar="FILE",
        help="where the answers to a SQuAD file go (default: ./predictions.json)",
    ),
    _option("-v", "--vocab-file", on=INFERENCES, metavar="FILE", help="WordPiece vocabulary, for engines that carry none"),
    _option(
        "-b",
        "--batch-size",
        on=INFERENCES,
        type=whole(1),
        metavar="N",
        help="windows a run (default: what the engine runs fastest)",
    ),
    _option(
        "-s", "--sequence-length", on=INFERENCES, type=whole(5), metavar="N", help="window length (default: the engine's longest)"
    ),
    _option(
        "--doc-stride",
        on=INFERENCES,
        type=whole(1),
        default=128,
        metavar="N",
        help="word pieces from the start of one window to the start of the next (default: 128)",
    ),
    _option(
        "--max-query-length", on=INFERENCES, type=whole(1), default=64, metavar="N", help="question word pieces kept (default: 64)"
    ),
    _option(
        "--max-answer-length",
        on=INFERENCES,
        type=whole(1),
        default=30,
        metavar="N",
        help="longest answer in word pieces (default: 30)",
    ),
    _option("--n-best-size", on=INFERENCES, type=whole(1), default=20, metavar="N", help="candidates kept (default: 20)"),
    _option("--n-best-file", on=INFERENCES, metavar="FILE", help="write the candidates of every SQuAD question, with scores"),
    _option("--squad-v2", on=INFERENCES, help="allow the answer that there is none", **_FLAG),
    _option(
        "--null-threshold",
        on=INFERENCES,
        type=number(),
        metavar="X",
        help="with --squad-v2: no answer when its score beats the best answer's by more (default: 0)",
    ),
    _option(
        "--na-prob-file",
        on=INFERENCES,
        metavar="FILE",
        help="write every question's no-answer probability, for evaluate-v2.0.py -n",
    ),
    _option(
        "--cased",
        on=BUILDERS + INFERENCES,
        group="casing",
        dest="lower_case",
        action="store_false",
        default=None,
        help="keep case and accents",
    ),
    _option(
        "--uncased",
        on=BUILDERS + INFERENCES,
        group="casing",
        dest="lower_case",
        action="store_true",
        default=None,
        help="lower-case, strip accents",
    ),
    # Measuring
    _option(
        "-b", "--batch-size", on=PERFS, type=whole(1), action="append", metavar="N", help="batch size; repeatable (default: 1)"
    ),
    _option("-s", "--sequence-length", on=PERFS, type=whole(5), default=128, metavar="N", help="sequence length (default: 128)"),
    _option("-i", "--iterations", on=PERFS, type=whole(1), default=200, metavar="N", help="timed runs (default: 200)"),
    _option("-w", "--warm-up-runs", on=PERFS, type=whole(0), default=10, metavar="N", help="untimed runs before (default: 10)"),
    _option(
        "-d",
        "--duration",
        on=PERFS,
        type=number(0),
        default=0.0,
        metavar="S",
        help="go on for this many seconds at least (default: 0)",
    ),
    _option(
        "-r",
        "--random-seed",
        on=PERFS,
        type=whole(0),
        default=12345,
        metavar="N",
        help="seed of the made-up input (default: 12345)",
    ),
    _option(
        "--lengths",
        on="perf_varseqlen",
        choices=("squad", "fixed"),
        default="squad",
        help="sequence lengths: spread like SQuAD's up to -s, or all of -s (default: squad)",
    ),
    # Running
    _option("--enable-graph", on=("inference_c", *PERFS), help="run through a CUDA graph (cuda and tensorrt engines)", **_FLAG),
    _option(
        "--cpu-runtime",
        on=INFERENCES + PERFS,
        choices=("auto", "openvino", "onnxruntime"),
        default="auto",
        help="what executes a cpu engine (default: OpenVINO, ONNX Runtime where it is not installed)",
    ),
    _option("--threads", on=INFERENCES + PERFS, type=whole(1), metavar="N", help="CPU threads (default: all cores)"),
    _option(
        "--streams",
        on=INFERENCES + PERFS,
        type=whole(1),
        metavar="N",
        help="inferences at the same time: OpenVINO's streams, TensorRT's execution contexts (default: chosen)",
    ),
    _option("--json", on=INFERENCES + PERFS, help="print the result as JSON", **_FLAG),
)


def parser(command: str) -> Parser:
    """Return the parser of a command."""
    result = Parser(prog=f"{command}.py", description=COMMANDS[command])
    result.add_argument("--version", action="version", version=__version__)
    groups: dict[str, Any] = {}
    for option in OPTIONS:
        if command not in option.commands:
            continue
        if option.group and option.group not in groups:
            groups[option.group] = result.add_mutually_exclusive_group()
        (groups[option.group] if option.group else result).add_argument(*option.flags, **option.settings)
    return result


def parse(command: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed arguments; ends the process with status 2 and one sentence where they are wrong."""
    return parser(command).parse_args(sys.argv[1:] if arguments is None else arguments)
