# SPDX-License-Identifier: Apache-2.0
"""What --verify of the builders does: hold a new engine against the NumPy reference in FP32, on SQuAD questions.

The engine answers as it will for users (helpers.qa); the reference gets the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers import backends
from helpers.backends import LoadOptions, Session
from helpers.batching import Batch
from helpers.cli import log, progress_bar
from helpers.config import BertConfig, BuildOptions
from helpers.data_processing import REMEDY_BUILDING, Example, WindowOptions, question_room, read_squad
from helpers.errors import BertError, InputError, MissingDependency, UsageError
from helpers.files import read_json
from helpers.qa import QuestionAnswerer
from helpers.reference import Reference
from helpers.squad_metrics import Golds, f1, gold_answers, raw_scores
from helpers.tokenization import FullTokenizer
from helpers.weights import Weights

LIMIT = 1.0  # points of F1; INT8 costs a few tenths, seen on a thousand questions (docs/decisions.md)
REMEDY = "build with a wider precision, or with --calibrate and -j on text like yours"


@dataclass(frozen=True)
class Questions:
    """Questions of a SQuAD file, with the right answers to them."""

    source: Path
    examples: list[Example]
    golds: Golds


def prepare(count: int, squad_json: Path, backend: str, options: BuildOptions, tokenizer: FullTokenizer | None) -> Questions:
    """Return the first `count` questions of a file; raise BertError where an engine could not be verified on them here.

    Called before the build, so that hours of work do not end that way.
    """
    if tokenizer is None:
        raise UsageError("--verify asks questions, which needs the model's vocabulary; give vocab.txt with -v/--vocab-file")
    if options.megatron:
        raise UsageError("--verify compares with a BERT that has no Megatron residuals; leave out --verify or --megatron")
    try:
        backends.module(backend).check()
    except MissingDependency as error:
        raise MissingDependency(f"--verify runs the new engine, which this machine cannot: {error}") from error
    examples = read_squad(squad_json)[:count]
    answers = gold_answers(read_json(squad_json, "SQuAD file"))
    golds = {example.id: answers[example.id] for example in examples}
    if not any(golds.values()):
        raise InputError(f"{squad_json} has no answers to the first {count} questions; give --verify a file with some by -j")
    window = WindowOptions(sequence_length=max(options.sequence_lengths))
    for example, question in zip(examples, tokenizer.encode([example.question for example in examples]), strict=True):
        question_room(question, window, example.id, REMEDY_BUILDING)
    return Questions(squad_json, examples, golds)


def verify(engine: Path, config: BertConfig, weights: Weights, questions: Questions, limit: float) -> None:
    """Print the F1 of engine and reference and the largest error of the logits, relative to the largest logit.

    Raises BertError when the engine's F1 lies more than `limit` points below the reference's, or a logit is no finite number.
    """
    with _engine_stays(engine):
        asked = QuestionAnswerer(engine, load=LoadOptions(log=log))
        beside = Beside(asked.session, Reference(config, weights))
        reference = QuestionAnswerer.of_session(beside, asked.tokenizer, asked.window, asked.batch_size)
        right = _scores(reference, questions, "reference")
        if not np.isfinite(beside.error):
            raise BertError(f"the {asked.info.precision} engine gave logits that are not finite numbers; {REMEDY}")
        scores = _scores(asked, questions, "engine")
        found, expected = scores.mean(), right.mean()
        noise = (scores - right).std() / np.sqrt(len(scores))  # another choice of as many questions differs by this much
        print(
            f"verified on {len(scores)} questions of {questions.source}: F1 {found:.2f}, of the FP32 reference {expected:.2f} "
            f"(standard error of the difference {noise:.2f}); "
            f"largest error of a logit: {100 * beside.error:.3g} % of the largest logit"
        )
        if not expected - found <= limit:
            raise BertError(
                f"the {asked.info.precision} engine's F1 {found:.2f} is more than {limit:g} below FP32's {expected:.2f}; {REMEDY}"
            )


@contextmanager
def _engine_stays(engine: Path) -> Iterator[None]:
    """Say in every error that the engine is there all the same."""
    try:
        yield
    except BertError as error:
        raise type(error)(f"{error} ({engine} is left in place)") from error


def _scores(asked: QuestionAnswerer, questions: Questions, what: str) -> np.ndarray:
    """Return F1 x 100 of every answer."""
    with progress_bar(len(questions.examples), f"questions to the {what}") as bar:
        answers = {example.id: best.answers[0].answer for example, best in asked.answer_all(questions.examples, bar.update)}
    return 100 * np.array(list(raw_scores(questions.golds, answers, f1).values()))


class Beside:
    """The reference in the place of an engine; what it is asked it asks the engine too, and compares.

    error: the largest difference of a logit so far, divided by the reference's largest magnitude.
    """

    concurrency = 1  # NumPy's products take all cores by themselves

    def __init__(self, session: Session, reference: Reference) -> None:
        self.info, self.batch_size = session.info, session.batch_size
        self._session, self._reference = session, reference
        self._difference = self._magnitude = np.float32(0)

    def run(self, batch: Batch) -> np.ndarray:
        expected = self._reference(batch)
        difference = np.abs(self._session.run(batch) - expected).max()
        self._difference = np.maximum(self._difference, difference)  # a NaN stays
        self._magnitude = np.maximum(self._magnitude, np.abs(expected).max())
        return expected

    @property
    def error(self) -> float:
        return float(self._difference / self._magnitude)

    def describe(self) -> dict[str, Any]:
        return {"device": "NumPy"}
