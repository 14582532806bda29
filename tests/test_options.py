# SPDX-License-Identifier: Apache-2.0
"""Every documented command line is accepted, and no misspelt option passes in silence."""

from __future__ import annotations

import pytest

from helpers import calibrator
from helpers.options import COMMANDS, OPTIONS, parse

# What the old README, benchmark scripts and notebooks pass, by command.
DOCUMENTED = {
    "builder": [
        "-m models/model.ckpt -o e -b 1 -s 128 --fp16 -c dir -v vocab.txt",
        "-m model.ckpt -o e -b 1 -b 8 -s 128 -s 384 -f -c dir",
        "-m model.ckpt -o e -s 384 --int8 --fp16 --strict -c dir --squad-json d.json -v vocab.txt --calib-num 100 -iln -imh",
        "-x model.onnx -o e -s 384 -i -g -b 1 --fp16 -c dir --vocab-file vocab.txt -p cache -w 5000",
        "-m model.ckpt -o e -c dir --fp32 -b 128 -s 384 -tcf build.tcf",
        "-pt model.pt -o e -c dir -sp --verbose --use-v3-plugins --distributive_independence",
        "-m model.ckpt -o e -c dir -fi -s128 -t -j d.json -n 1 --use-deprecated-plugins",
    ],
    "builder_varseqlen": [
        "-x model.onnx -o e -b 1 -s 256 --fp16 --int8 -c dir -v vocab.txt",
        "-pkl weights.pkl --megatron --fp16 --int8 --strict -il --sp -o e -c dir -b 8 -s 128 -tcf build_megatron.tcf",
        "-m model.ckpt -o e -c dir --max-batch-size 1 --max-batch-size 8 --max-sequence-length 384 -w 100",
    ],
    "inference": [
        "-e e -p some words here -q what is it ? -v vocab.txt",
        "-e e -s 384 -sq dev.json -v vocab.txt -o out.json",
        "-e e -b 8 -pf p.txt -qf q.txt --max-query-length 64 --max-answer-length 30 --n-best-size 20 --doc-stride 128",
    ],
    "inference_varseqlen": ["-e e -s 256 -sq dev.json -v vocab.txt -o out.json --doc-stride 64", "-e e -p a b -q c"],
    "inference_c": ["-e e --enable-graph -p some words -q what -v vocab.txt -s 256"],
    "perf": ["-e e -b 1 -b 8 -s 128 -i 200 -w 10 -d 2.5 -r 1", "-e e"],
    "perf_varseqlen": ["-e e -b 1 -s 256 -i 200 -w 10 -r 1"],
}


@pytest.mark.parametrize(("command", "line"), [(command, line) for command, lines in DOCUMENTED.items() for line in lines])
def test_documented_command_lines_are_accepted(command: str, line: str) -> None:
    parse(command, line.split())


def test_defaults_are_the_documented_ones() -> None:
    inference = parse("inference", ["-e", "e"])
    assert (inference.max_query_length, inference.max_answer_length, inference.n_best_size, inference.doc_stride) == (
        64,
        30,
        20,
        128,
    )
    assert inference.output_prediction_file == "./predictions.json"
    perf = parse("perf", ["-e", "e"])
    assert (perf.sequence_length, perf.iterations, perf.warm_up_runs, perf.duration, perf.random_seed) == (128, 200, 10, 0.0, 12345)
    assert calibrator.QUESTIONS == 100


def test_unquoted_words_and_no_words() -> None:
    args = parse("inference", ["-e", "e", "-p", "several", "words", "-q"])
    assert (args.passage, args.question) == (["several", "words"], [])


@pytest.mark.parametrize(
    ("command", "line", "sentence"),
    [
        (
            "inference",
            "-e e --doc-strid 5 --max-querylength 3",
            "unknown option --max-querylength; did you mean --max-query-length?",
        ),
        ("builder", "-o o -c c --fp61", "unknown option --fp61; did you mean --fp16?"),
        ("perf", "-e e --iteratons 5", "unknown option --iteratons; did you mean --iterations?"),
        ("perf", "-e e stray", "unexpected word 'stray'; perf.py -h lists the options"),
        ("perf", "-e e -b 0", "argument -b/--batch-size: 0 is too small, give 1 or more"),
        ("perf", "-e e -b x", "argument -b/--batch-size: invalid whole number value: 'x'"),
        ("perf", "-e e -d nan", "argument -d/--duration: nan is no finite number, give one"),
        ("perf", "-e e -d -5", "argument -d/--duration: -5 is out of range, give 0 or more"),
        ("perf", "-e e -d x", "argument -d/--duration: invalid number value: 'x'"),
        ("builder", "-o o -c c --verify-limit inf", "argument --verify-limit: inf is no finite number, give one"),
        ("builder", "-o o -c c --calib-percentile 3", "argument --calib-percentile: 3 is out of range, give 50 to 100"),
        ("inference", "-e e --null-threshold nan", "argument --null-threshold: nan is no finite number, give one"),
        ("inference", "-q what", "the following arguments are required: -e/--engine"),
        ("inference", "-e e -p the -zoo is open", "unknown option -zoo; text with a word that begins with a hyphen must be quoted"),
        ("builder", "-o o -c c --cased --uncased", "argument --uncased: not allowed with argument --cased"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(script, command: str, line: str, sentence: str) -> None:
    ended = script(command, *line.split())
    assert ended.status == 2
    assert ended.sentence == f"{command}.py: error: {sentence}"
    assert ended.out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(script, command: str) -> None:
    ended = script(command, "-h")
    assert ended.status == 0
    for option in OPTIONS:
        if command in option.commands:
            assert all(flag in ended.out for flag in option.flags), option.flags
            assert option.settings["help"]
