# SPDX-License-Identifier: Apache-2.0
"""SQuAD files, windows over long passages, and the way from logits back to answers cut out of the original text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from helpers.errors import InputError, UsageError
from helpers.files import read_json
from helpers.tokenization import FullTokenizer, Tokens


@dataclass(frozen=True)
class Example:
    """A question on a passage."""

    id: str
    question: str
    passage: str


def read_squad(path: str | Path) -> list[Example]:
    """Return the questions of a SQuAD v1.1 or v2.0 file, in its order."""
    content = read_json(path, "SQuAD file")
    try:
        examples = [
            Example(str(question["id"]), question["question"], paragraph["context"])
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not in SQuAD format ({error!r}); it needs data > paragraphs > context, qas > id, question"
        ) from error
    if not examples:
        raise InputError(f"the SQuAD file {path} holds no questions; give a file with some")
    if not all(isinstance(example.question, str) and isinstance(example.passage, str) for example in examples):
        raise InputError(f"{path} is not in SQuAD format: a question or a context is not text")
    seen: set[str] = set()
    for example in examples:  # answers go by id: of two with one id, one would be lost
        if example.id in seen:
            raise InputError(f"{path} has the question id {example.id!r} twice; give every question an id of its own")
        seen.add(example.id)
    return examples


def check_whole(option: str, value: object, least: int) -> None:
    """Raise UsageError unless a value is a whole number of at least `least`; the command line's have been checked before."""
    if not isinstance(value, Integral):
        raise UsageError(f"{option} {value!r} is no whole number; give {least} or more")
    if int(value) < least:
        raise UsageError(f"{option} {value} is too small; give {least} or more")


@dataclass(frozen=True)
class WindowOptions:
    """How passages are cut and answers chosen.

    sequence_length: word pieces of a window, the question and three special tokens included.
    doc_stride: word pieces from the start of one window to the start of the next.
    null_threshold: with squad_v2, the answer is empty when the null score beats the best answer by more than this.
    """

    sequence_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 30
    n_best_size: int = 20
    squad_v2: bool = False
    null_threshold: float = 0.0

    def __post_init__(self) -> None:
        least = {"sequence_length": 5, "doc_stride": 1, "max_query_length": 1, "max_answer_length": 1, "n_best_size": 1}
        for name, smallest in least.items():
            check_whole("--" + name.replace("_", "-"), getattr(self, name), smallest)
        if not isinstance(self.null_threshold, Real) or self.null_threshold != self.null_threshold:
            raise UsageError(f"--null-threshold {self.null_threshold!r} is no number; give one")


@dataclass(frozen=True)
class Window:
    """One model input: [CLS] question [SEP] a stretch of the passage [SEP].

    ids, segments: int32 (length,); text_begin: index in the window of the first piece of the stretch;
    first_piece: its index in the passage; owned: for every piece of the stretch, whether this window gives it most context.
    """

    ids: np.ndarray
    segments: np.ndarray
    text_begin: int
    first_piece: int
    owned: np.ndarray  # bool (pieces of the stretch,)


@dataclass(frozen=True)
class WindowLogits:
    """What the engine says of one window: start and end logit, float32 (length,) each, of every word piece.

    pieces: the word pieces, (length,); starts, ends: the characters [start, end) of the passage each came from, int32 (length,),
    -1 for those that are not of the passage: [CLS], the question, [SEP].
    """

    pieces: tuple[str, ...]
    starts: np.ndarray
    ends: np.ndarray
    start_logits: np.ndarray
    end_logits: np.ndarray


REMEDY_ASKING = "give a longer -s/--sequence-length or a smaller --max-query-length"
REMEDY_BUILDING = "give a longer -s, or other questions with -j/--squad-json"  # builders cut at the default


def question_room(question: Tokens, options: WindowOptions, name: str = "", remedy: str = REMEDY_ASKING) -> int:
    """Return how many passage pieces fit beside a question; raise UsageError, with the name if one is given, when too few do.

    A long question is cut to max_query_length first, as the old scripts do.
    """
    pieces = min(len(question), options.max_query_length)
    room = options.sequence_length - pieces - 3
    if room < 1:
        raise UsageError(
            f"{f'question {name!r}' if name else 'a question'} of {pieces} word pieces leaves no room for the passage "
            f"in a window of {options.sequence_length}; {remedy}"
        )
    return room


def make_windows(
    question: Tokens, passage: Tokens, tokenizer: FullTokenizer, options: WindowOptions, name: str = ""
) -> list[Window]:
    """Return the windows of a question over a passage; none for an empty passage. name: the question's id, for messages.

    Windows start every doc_stride pieces and end with the first that reaches the end of the passage, so that none is left out
    as long as the stride is at most the room; a larger stride is clipped to it.
    """
    room = question_room(question, options, name)
    head = np.concatenate([[tokenizer.cls_id], question.ids[: options.max_query_length], [tokenizer.sep_id]]).astype(np.int32)
    spans, start = [], 0
    while start < len(passage):
        length = min(len(passage) - start, room)
        spans.append((start, length))
        if start + length == len(passage):
            break
        start += min(length, options.doc_stride)
    owners = _owners(spans, len(passage))
    windows = []
    for number, (start, length) in enumerate(spans):
        ids = np.concatenate([head, passage.ids[start : start + length], [tokenizer.sep_id]]).astype(np.int32)
        segments = np.zeros(len(ids), np.int32)
        segments[len(head) :] = 1
        windows.append(Window(ids, segments, len(head), start, owners[start : start + length] == number))
    return windows


def _owners(spans: Sequence[tuple[int, int]], pieces: int) -> np.ndarray:
    """Return for every passage piece the window with the largest min(left, right) context + 0.01 x length; ties go to the first."""
    best, owner = np.full(pieces, -1.0), np.zeros(pieces, np.int32)
    for number, (start, length) in enumerate(spans):
        places = np.arange(length)
        score = np.minimum(places, places[::-1]) + 0.01 * length
        better = score > best[start : start + length]
        best[start : start + length][better] = score[better]
        owner[start : start + length][better] = number
    return owner


@dataclass(frozen=True)
class Spans:
    """Answer spans found in one window: piece indices in the passage, both inclusive, and their logits; all (spans,).

    null: start and end logit of [CLS], the score of there being no answer.
    """

    begins: np.ndarray
    ends: np.ndarray
    start_logits: np.ndarray
    end_logits: np.ndarray
    null: tuple[float, float]


def find_spans(window: Window, logits: np.ndarray, options: WindowOptions) -> Spans:
    """Return the spans between the n best starts and the n best ends of a window's logits, (length, 2)."""
    start_logits, end_logits = logits[:, 0], logits[:, 1]
    begins = _in_text(_best_indices(start_logits, options.n_best_size), window)
    ends = _in_text(_best_indices(end_logits, options.n_best_size), window)
    begins = begins[window.owned[begins]]
    lengths = ends[None, :] - begins[:, None] + 1
    rows, columns = np.nonzero((lengths >= 1) & (lengths <= options.max_answer_length))
    begins, ends = begins[rows], ends[columns]
    return Spans(
        begins + window.first_piece,
        ends + window.first_piece,
        start_logits[begins + window.text_begin],
        end_logits[ends + window.text_begin],
        (float(start_logits[0]), float(end_logits[0])),
    )


def _best_indices(logits: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest logits, best first, ties by index."""
    return np.argsort(-logits, kind="stable")[:count]


def _in_text(indices: np.ndarray, window: Window) -> np.ndarray:
    """Return those window indices that lie in the passage, as indices into the stretch."""
    inside = indices - window.text_begin
    return inside[(inside >= 0) & (inside < len(window.owned))]


@dataclass(frozen=True)
class Answer:
    """One answer: the text passage[start:end], its probability among the kept candidates, its window, and the logits behind it.

    An empty text with start = end = 0 means that the passage holds no answer. Reads like a dict too: answer["score"], dict(answer).
    """

    answer: str
    score: float
    start: int
    end: int
    window: int  # number of the window it was found in, from 0
    start_logit: float
    end_logit: float

    def __getitem__(self, key: str) -> Any:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def keys(self) -> Iterable[str]:
        return self.__dataclass_fields__.keys()

    def as_dict(self) -> dict[str, Any]:
        return dict(self)


@dataclass(frozen=True)
class NBest:
    """The answers to one question, best first, at least one; null_odds is the no-answer score minus the best answer's."""

    answers: tuple[Answer, ...]
    null_odds: float


def choose_answers(found: Sequence[Spans], passage: str, pieces: Tokens, options: WindowOptions) -> NBest:
    """Return the n best answers over all windows of a question, `found` in the order of the windows.

    Spans with the same text are merged, the best-scored place stands. The probability is the softmax of start + end logit over
    the kept answers. With squad_v2 the empty answer takes part, and leads where it wins by more than the threshold.
    """
    spans: Iterable[tuple[int, int, float, float, int]] = ()
    if found:
        begins, ends, starts, stops = (
            np.concatenate([getattr(window, name) for window in found]) for name in ("begins", "ends", "start_logits", "end_logits")
        )
        numbers = np.repeat(np.arange(len(found)), [len(window.begins) for window in found])
        order = np.argsort(-(starts.astype(np.float64) + stops), kind="stable")
        spans = ((int(begins[i]), int(ends[i]), float(starts[i]), float(stops[i]), int(numbers[i])) for i in order)
    kept: dict[str, tuple[int, int, int, float, float]] = {}
    for begin, end, start_logit, end_logit, number in spans:
        first, last = int(pieces.starts[begin]), int(pieces.ends[end])
        text = passage[first:last]
        if text.strip() and text not in kept:
            kept[text] = (first, last, number, start_logit, end_logit)
            if len(kept) == options.n_best_size:
                break
    null_window = min(range(len(found)), key=lambda number: sum(found[number].null), default=0)
    null = found[null_window].null if found else (0.0, 0.0)
    best = next(iter(kept.values()), None)
    null_odds = float("inf") if best is None else sum(null) - best[3] - best[4]
    if options.squad_v2 or not kept:
        kept[""] = (0, 0, null_window, *null)
    scores = np.array([start_logit + end_logit for *_, start_logit, end_logit in kept.values()])
    powers = np.exp(scores - scores.max())
    probabilities = powers / powers.sum()
    answers = [
        Answer(text, float(probability), *rest) for (text, rest), probability in zip(kept.items(), probabilities, strict=True)
    ]
    answers.sort(key=lambda answer: -(answer.start_logit + answer.end_logit))
    if options.squad_v2 and best is not None:
        leader = next(answer for answer in answers if (answer.answer == "") == (null_odds > options.null_threshold))
        answers.remove(leader)
        answers.insert(0, leader)
    return NBest(tuple(answers), null_odds)
