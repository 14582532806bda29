# SPDX-License-Identifier: Apache-2.0
"""Question answering with any engine, from text to answers: the Python API that the scripts use too.

from helpers import QuestionAnswerer
qa = QuestionAnswerer("engines/demo.engine")
print(qa("What is TensorRT?", "TensorRT is a high performance ...").answer)
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from helpers import backends
from helpers.backends import LoadOptions, Session
from helpers.batching import pack
from helpers.data_processing import (
    Answer,
    Example,
    NBest,
    Spans,
    Window,
    WindowLogits,
    WindowOptions,
    check_whole,
    choose_answers,
    find_spans,
    make_windows,
)
from helpers.engine_file import EngineInfo
from helpers.engine_text import engine_info, engine_tokenizer
from helpers.errors import EngineMismatch, UsageError
from helpers.questions import Contexts, Question, Questions, Stream, examples, is_one, one_example
from helpers.tokenization import FullTokenizer, Tokens

__all__ = ["Answer", "Example", "LoadOptions", "NBest", "QuestionAnswerer", "WindowLogits", "WindowOptions"]

# Windows gathered before they are sorted by length and run. Enough that batches of one length form, few enough that memory stays
# flat and that tokenizing one chunk hides behind running another.
CHUNK_WINDOWS = 1024


@dataclass
class Statistics:
    """What a run did: counts, and where the wall time went, in seconds."""

    questions: int = 0
    windows: int = 0
    tokens: int = 0
    tokenize: float = 0.0  # text to windows
    wait: float = 0.0  # for the engine, nothing else left to do
    choose: float = 0.0  # logits to answers
    engine: float = 0.0  # inside the engine, all threads together


@dataclass
class _Asked:
    """A question on its way: its windows become spans, its spans an answer."""

    example: Example
    pieces: Tokens  # of the passage
    windows: list[Window]
    found: dict[int, Spans] = field(default_factory=dict)  # by the window's number


class _Ran(NamedTuple):
    """What one run of the engine did."""

    windows: int
    tokens: int
    seconds: float


class _Job(NamedTuple):
    """A run that is under way, and the questions of its windows."""

    future: Future[_Ran]
    asked: list[_Asked]


class QuestionAnswerer:
    """An engine with its vocabulary and window settings, ready for questions.

    engine: an engine file of any backend.
    vocab_file: needed only for an engine that carries no vocabulary; a different one than the engine's is refused.
    lower_case: overrides the engine's casing.
    window: WindowOptions; its sequence_length is the engine's longest by default.
    batch_size: windows a run; by default what the engine runs fastest.
    info: what engine_info has read of the engine, where the caller knows it already.

    Raises BertError: InputError (no such file, wrong vocabulary), EngineMismatch, MissingDependency, UsageError.
    """

    def __init__(
        self,
        engine: str | Path,
        vocab_file: str | Path | None = None,
        *,
        window: WindowOptions | None = None,
        batch_size: int | None = None,
        lower_case: bool | None = None,
        load: LoadOptions | None = None,
        info: EngineInfo | None = None,
    ) -> None:
        for name, value, types, kind in (
            ("engine", engine, str | os.PathLike, "the path of a file"),
            ("vocab_file", vocab_file, str | os.PathLike | None, "the path of a file"),
            ("window", window, WindowOptions | None, "WindowOptions"),
            ("load", load, LoadOptions | None, "LoadOptions"),
        ):
            if not isinstance(value, types):
                raise UsageError(f"{name} is {value!r:.60}; give {kind}")
        self.info = info or engine_info(engine)
        self.window = window or WindowOptions(sequence_length=self.info.max_length)
        longest, wanted = self.info.max_length, self.window.sequence_length
        if wanted > longest:
            raise EngineMismatch(
                f"the engine {engine} takes at most {longest} word pieces, a window of {wanted} was asked for; "
                f"give -s {longest} or less, or build with -s {wanted}"
            )
        if batch_size is not None:
            check_whole("-b/--batch-size", batch_size, 1)
        self.tokenizer = engine_tokenizer(engine, self.info, vocab_file, lower_case)
        self._begin(backends.load(engine, self.info, load or LoadOptions()), batch_size)

    @classmethod
    def of_session(
        cls, session: Session, tokenizer: FullTokenizer, window: WindowOptions, batch_size: int | None = None
    ) -> QuestionAnswerer:
        """Return a session ready for questions: an engine that is loaded already, or what takes the place of one."""
        answerer = cls.__new__(cls)
        answerer.info, answerer.tokenizer, answerer.window = session.info, tokenizer, window
        answerer._begin(session, batch_size)
        return answerer

    def _begin(self, session: Session, batch_size: int | None) -> None:
        self.session = session
        self.batch_size = batch_size or session.batch_size
        self.statistics = Statistics()
        self._pool = ThreadPoolExecutor(session.concurrency)  # its threads start with the first question

    # Texts and dicts are iterables themselves; the first signature that fits is meant.
    @overload
    def __call__(self, question: str | Question, context: str | None = None, *, top_k: Literal[1] = 1) -> Answer: ...
    @overload
    def __call__(self, question: str | Question, context: str | None = None, *, top_k: int) -> list[Answer]: ...
    @overload
    def __call__(self, question: Questions, context: Contexts = None, *, top_k: Literal[1] = 1) -> list[Answer]: ...
    @overload
    def __call__(self, question: Questions, context: Contexts = None, *, top_k: int) -> list[list[Answer]]: ...
    @overload
    def __call__(self, question: Stream, context: Contexts = None, *, top_k: Literal[1] = 1) -> Iterator[Answer]: ...
    @overload
    def __call__(self, question: Stream, context: Contexts = None, *, top_k: int) -> Iterator[list[Answer]]: ...
    def __call__(self, question: Any, context: Any = None, *, top_k: int = 1) -> Any:
        """Ask one question, a list of them, or a stream; the calls of Hugging Face's question-answering pipeline work here.

        question: a text with its passage as context; a dict with the keys question and context; or a list or any other iterable of
        either, for which context is one passage for all or a list of as many.
        top_k: how many answers to each question, best first, at most n_best_size of the window options.
        Returns an Answer for one question, a list for a list, an iterator for any other iterable, in the order of the questions;
        in place of each Answer a list of them when top_k is above 1. Raises InputError for an empty text, UsageError otherwise.
        """
        if not isinstance(top_k, Integral) or not 1 <= top_k <= self.window.n_best_size:
            raise UsageError(
                f"top_k is {top_k!r}, {self.window.n_best_size} candidates are kept; give 1 to that, or a larger n_best_size"
            )
        best = (found.answers for _, found in self.answer_all(examples(question, context)))
        results = (answers[0] if top_k == 1 else list(answers[:top_k]) for answers in best)
        if is_one(question):
            return next(results)
        return list(results) if isinstance(question, Sequence) else results

    def n_best(self, question: str, passage: str) -> NBest:
        """Return all kept answers to one question, best first, and the odds that there is none."""
        return next(self.answer_all([one_example(question, passage)]))[1]

    def windows(self, question: str, passage: str) -> list[WindowLogits]:
        """Return the logits behind the answers to one question, window by window; Answer.window is an index into them."""
        example = one_example(question, passage)
        tokens, pieces = self.tokenizer.encode([example.question, example.passage])
        result = []
        for window in make_windows(tokens, pieces, self.tokenizer, self.window):
            logits = self.session.run(pack([window.ids], [window.segments]))
            starts, ends = np.full((2, len(window.ids)), -1, np.int32)
            stretch = slice(window.first_piece, window.first_piece + len(window.owned))
            place = slice(window.text_begin, window.text_begin + len(window.owned))
            starts[place], ends[place] = pieces.starts[stretch], pieces.ends[stretch]
            result.append(WindowLogits(self.tokenizer.convert_ids_to_tokens(window.ids), starts, ends, logits[:, 0], logits[:, 1]))
        return result

    def answer_all(
        self, examples: Iterable[Example], progress: Callable[[int], Any] | None = None
    ) -> Iterator[tuple[Example, NBest]]:
        """Yield every question with its answers, in order, while later ones are still being worked on.

        A passage that follows itself is tokenized once for all its questions. progress is called, as runs end, with the number of
        questions that are through. Memory does not grow with their number. A passage without any text gives the empty answer.
        """
        running: deque[tuple[list[_Asked], list[_Job]]] = deque()
        try:
            for chunk in self._chunks(examples):
                running.append((chunk, self._submit(chunk)))
                if len(running) == 2:
                    yield from self._finish(*running[0], progress)
                    running.popleft()
            if running:
                yield from self._finish(*running[0], progress)
                running.popleft()
        finally:  # after an error, or when the caller stops early, what has not begun need not
            for _, jobs in running:
                for job in jobs:
                    job.future.cancel()

    def _chunks(self, examples: Iterable[Example]) -> Iterator[list[_Asked]]:
        """Yield questions with their windows, in groups of about CHUNK_WINDOWS windows."""
        chunk: list[_Asked] = []
        windows = 0
        stream = iter(examples)
        known: dict[str, Tokens] = {}
        while group := list(itertools.islice(stream, 64)):
            begin = time.perf_counter()
            distinct = list(dict.fromkeys(example.passage for example in group if example.passage not in known))
            tokens = self.tokenizer.encode([example.question for example in group] + distinct)
            known |= dict(zip(distinct, tokens[len(group) :], strict=True))
            for example, question in zip(group, tokens, strict=False):
                pieces = known[example.passage]
                asked = _Asked(example, pieces, make_windows(question, pieces, self.tokenizer, self.window, example.id))
                chunk.append(asked)
                windows += len(asked.windows)
                if windows >= CHUNK_WINDOWS:
                    self.statistics.tokenize += time.perf_counter() - begin
                    yield chunk
                    chunk, windows, begin = [], 0, time.perf_counter()
            last = group[-1].passage
            known = {last: known[last]}  # its questions may go on in the next group
            self.statistics.tokenize += time.perf_counter() - begin
        if chunk:
            yield chunk

    def _submit(self, chunk: list[_Asked]) -> list[_Job]:
        """Start the windows of a chunk, batched by length, longest first so that the runs that end last are short ones."""
        items = [(asked, number) for asked in chunk for number in range(len(asked.windows))]
        items.sort(key=lambda item: -len(item[0].windows[item[1]].ids))
        groups = [items[begin : begin + self.batch_size] for begin in range(0, len(items), self.batch_size)]
        return [_Job(self._pool.submit(self._run, group), [asked for asked, _ in group]) for group in groups]

    def _run(self, items: list[tuple[_Asked, int]]) -> _Ran:
        """Run one batch and leave the spans it finds with their questions."""
        begin = time.perf_counter()
        windows = [asked.windows[number] for asked, number in items]
        batch = pack([window.ids for window in windows], [window.segments for window in windows])
        logits = self.session.run(batch)
        seconds = time.perf_counter() - begin
        if not np.isfinite(logits).all():
            raise EngineMismatch(
                f"the {self.info.precision} engine gave logits that are not finite numbers; build it again with a wider precision "
                "(--fp16 instead of --int8, or neither)"
            )
        for (asked, number), first, last in zip(items, batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            asked.found[number] = find_spans(asked.windows[number], logits[first:last], self.window)
        return _Ran(batch.size, batch.tokens, seconds)

    def _finish(
        self, chunk: list[_Asked], jobs: list[_Job], progress: Callable[[int], Any] | None
    ) -> Iterator[tuple[Example, NBest]]:
        """Wait for a chunk and yield its answers in the order of the questions."""
        begin = time.perf_counter()
        left = Counter({id(asked): len(asked.windows) for asked in chunk})
        for job in jobs:
            ran = job.future.result()
            left.subtract(id(asked) for asked in job.asked)
            if progress:
                progress(sum(left[asked] == 0 for asked in {id(asked) for asked in job.asked}))
            self.statistics.windows += ran.windows
            self.statistics.tokens += ran.tokens
            self.statistics.engine += ran.seconds
        self.statistics.wait += time.perf_counter() - begin
        for asked in chunk:
            begin = time.perf_counter()
            found = [asked.found[number] for number in range(len(asked.windows))]
            best = choose_answers(found, asked.example.passage, asked.pieces, self.window)
            self.statistics.choose += time.perf_counter() - begin
            self.statistics.questions += 1
            if progress and not asked.windows:
                progress(1)
            yield asked.example, best
