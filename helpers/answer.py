# SPDX-License-Identifier: Apache-2.0
"""What the inference scripts do: one question, a conversation on one passage, or a SQuAD file."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from contextlib import ExitStack
from typing import Any

from helpers.backends import LoadOptions
from helpers.cli import log, progress_bar
from helpers.data_processing import Example, NBest, WindowOptions, read_squad
from helpers.engine_file import check_writable, is_plan, sidecar, written_whole
from helpers.engine_text import engine_info
from helpers.errors import InputError, UsageError
from helpers.files import check_apart, read_text
from helpers.qa import QuestionAnswerer, Statistics

RULE = "-" * 24
EXIT_WORDS = ("exit", "quit")


def main(command: str, args: argparse.Namespace) -> None:
    """Answer what the command line asks."""
    for flag, path in (("--n-best-file", args.n_best_file), ("--na-prob-file", args.na_prob_file)):
        if path and not args.squad_json:
            raise UsageError(
                f"{flag} {path} is for the answers to a SQuAD file; give one with -sq/--squad-json, or leave {flag} out"
            )
    if args.null_threshold is not None and not args.squad_v2:
        log("--null-threshold has no effect without --squad-v2")
    passage, question = _texts(args)
    examples = read_squad(args.squad_json) if args.squad_json else []
    if args.squad_json:
        _check_outputs(args)
    qa = open_engine(args)
    if args.squad_json:
        answer_squad(qa, examples, args)
    elif passage is None:
        passage = _prompt("Paragraph: ")
        if passage is not None:
            converse(qa, passage, args.json)
    elif question is None:
        converse(qa, passage, args.json)
    else:
        answer_one(qa, passage, question, args.json, whole_block=True)


def _check_outputs(args: argparse.Namespace) -> None:
    """Raise InputError where a result cannot be written, UsageError where it would overwrite what it is made from."""
    inputs = [("-e/--engine", args.engine), ("-sq/--squad-json", args.squad_json)]
    if is_plan(args.engine):
        inputs.append(("the engine's metadata", str(sidecar(args.engine))))
    if args.vocab_file:
        inputs.append(("-v/--vocab-file", args.vocab_file))
    outputs = {
        "-o/--output-prediction-file": args.output_prediction_file,
        "--n-best-file": args.n_best_file,
        "--na-prob-file": args.na_prob_file,
    }
    check_apart(inputs, outputs.items())
    for path in outputs.values():
        if path is not None:
            check_writable(path)


def _texts(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """Return passage and question of the command line; raise UsageError where two options give the same one."""
    passages = [
        flag for flag, value in (("-p", args.passage), ("-pf", args.passage_file), ("-sq", args.squad_json)) if value is not None
    ]
    questions = [flag for flag, value in (("-q", args.question), ("-qf", args.question_file)) if value is not None]
    if len(passages) > 1:
        raise UsageError(f"{' and '.join(passages)} each give a passage; give one of them")
    if len(questions) > 1 or (args.squad_json and questions):
        both = questions + (["-sq"] if args.squad_json else [])
        raise UsageError(f"{' and '.join(both)} each give a question; give one of them")
    passage = read_text(args.passage_file, "passage file") if args.passage_file else _joined(args.passage)
    question = read_text(args.question_file, "question file").strip() if args.question_file else _joined(args.question)
    if passage is not None and not passage.strip():
        raise InputError("the passage is empty; give it some text")
    return passage, question or None


def _joined(words: list[str] | None) -> str | None:
    return None if words is None else " ".join(words)


def open_engine(args: argparse.Namespace) -> QuestionAnswerer:
    """Return the engine ready for questions."""
    info = engine_info(args.engine)
    window = WindowOptions(
        sequence_length=args.sequence_length or info.max_length,
        doc_stride=args.doc_stride,
        max_query_length=args.max_query_length,
        max_answer_length=args.max_answer_length,
        n_best_size=args.n_best_size,
        squad_v2=args.squad_v2,
        null_threshold=args.null_threshold or 0.0,
    )
    return QuestionAnswerer(
        args.engine,
        args.vocab_file,
        window=window,
        batch_size=args.batch_size,
        lower_case=args.lower_case,
        load=load_options(args, latency=not args.squad_json),
        info=info,
    )


def load_options(args: argparse.Namespace, latency: bool) -> LoadOptions:
    """Return how the command line wants an engine run."""
    return LoadOptions(
        enable_graph=getattr(args, "enable_graph", False),
        cpu_runtime=args.cpu_runtime,
        threads=args.threads,
        streams=args.streams,
        latency=latency,
        log=log,
    )


def answer_one(qa: QuestionAnswerer, passage: str, question: str, as_json: bool, whole_block: bool) -> None:
    """Print one answer, as the old scripts do or as JSON."""
    best, windows, seconds = _timed(qa, passage, question)
    if seconds < 0.5 or qa.info.backend != "cpu":  # the first run also sets the engine up: time another where nobody notices it
        _, _, seconds = _timed(qa, passage, question)
    answer = best.answers[0]
    if as_json:
        result = {"question": question, **answer.as_dict(), "n_best": [each.as_dict() for each in best.answers]}
        print(json.dumps({**result, **_null(qa, best), "windows": windows, "milliseconds": seconds * 1000}))
        return
    if whole_block:
        print(f"\nPassage: {passage}\n\nQuestion: {question}")
    rate = windows / seconds if seconds else 0.0
    print(f"\n{RULE}\nRunning inference in {rate:.3f} Sentences/Sec\n{RULE}")
    print(f"Answer: '{answer.answer}'\nWith probability: {answer.score * 100:.3f}", flush=True)


def _timed(qa: QuestionAnswerer, passage: str, question: str) -> tuple[NBest, int, float]:
    """Return the answers, the number of windows, and the seconds from text to answer."""
    before = qa.statistics.windows
    began = time.perf_counter()
    best = qa.n_best(question, passage)
    return best, qa.statistics.windows - before, time.perf_counter() - began


def _null(qa: QuestionAnswerer, best: NBest) -> dict[str, float]:
    return {"null_odds": _finite(best.null_odds)} if qa.window.squad_v2 else {}


def converse(qa: QuestionAnswerer, passage: str, as_json: bool) -> None:
    """Answer questions typed on the terminal until `exit`, `quit` or the end of input."""
    if not passage.strip():
        raise InputError("the passage is empty; give it some text")
    while (question := _prompt(f"Question (to leave, type {' or '.join(EXIT_WORDS)}): ")) is not None:
        if question.strip().lower() in EXIT_WORDS:
            return
        if question.strip():
            try:
                answer_one(qa, passage, question.strip(), as_json, whole_block=False)
            except UsageError as error:  # it takes the whole window; the next one may be shorter
                log(f"error: {error}")


def _prompt(text: str) -> str | None:
    """Return a line from the terminal without its end; None at the end of input."""
    print(text, end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise InputError(f"the input is not text in the terminal's encoding {error.encoding}; convert it, or set LANG") from error
    return line.rstrip("\n") if line else None


def answer_squad(qa: QuestionAnswerer, examples: list[Example], args: argparse.Namespace) -> None:
    """Write predictions.json, and n-best and no-answer files on request; all of them whole or not at all."""
    began = time.perf_counter()
    wanted = {"predictions": args.output_prediction_file, "n_best": args.n_best_file, "na_prob": args.na_prob_file}
    results: dict[str, dict[str, Any]] = {name: {} for name in wanted}
    with progress_bar(len(examples), "questions") as bar:
        for example, best in qa.answer_all(examples, bar.update):
            results["predictions"][example.id] = best.answers[0].answer
            if wanted["n_best"]:
                results["n_best"][example.id] = [each.as_dict() for each in best.answers]
            if wanted["na_prob"]:
                results["na_prob"][example.id] = 1 / (1 + math.exp(-_finite(best.null_odds)))
    seconds = time.perf_counter() - began
    with ExitStack() as stack:
        for name, path in wanted.items():
            if path:
                stack.enter_context(written_whole(path)).write_text(json.dumps(results[name], indent=4), encoding="utf-8")
    report(qa.statistics, seconds, wanted, args.json)


def _finite(odds: float) -> float:
    """Return odds that JSON can hold and exp() can take."""
    return max(-700.0, min(700.0, odds))


def report(statistics: Statistics, seconds: float, files: dict[str, str | None], as_json: bool) -> None:
    """Say which files were written and where the time went."""
    facts = {
        "questions": statistics.questions,
        "windows": statistics.windows,
        "tokens": statistics.tokens,
        "seconds": round(seconds, 3),
        "windows_per_second": round(statistics.windows / seconds, 2),
        "seconds_tokenizing": round(statistics.tokenize, 3),
        "seconds_waiting_for_engine": round(statistics.wait, 3),
        "seconds_choosing_answers": round(statistics.choose, 3),
    }
    if as_json:
        print(json.dumps({**{name: path for name, path in files.items() if path}, **facts}))
        return
    for path in filter(None, files.values()):
        print(f"{'Predictions' if path == files['predictions'] else 'Results'} are written to {path}")
    log(
        f"{statistics.questions} questions, {statistics.windows} windows in {seconds:.1f} s: "
        f"{facts['windows_per_second']} windows/s "
        f"(tokenizing {statistics.tokenize:.1f} s, waiting for the engine {statistics.wait:.1f} s, "
        f"choosing answers {statistics.choose:.1f} s)"
    )
