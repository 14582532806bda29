# SPDX-License-Identifier: Apache-2.0
"""The Python API: every form of a question, its documentation run block by block, and its mistakes."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from conftest import ANSWER, PASSAGE, QUESTION, ROOT
from helpers import Answer, Example, QuestionAnswerer, WindowOptions
from helpers.errors import InputError, UsageError

OTHER = {"question": "Who published BERT?", "context": "BERT was published by Google in 2018."}


@pytest.fixture(scope="module")
def qa(engines) -> QuestionAnswerer:
    return QuestionAnswerer(engines["fp32"])


def test_every_block_of_the_documentation_runs_and_prints_what_it_says(tmp_path, monkeypatch) -> None:
    for name in ("builder.py", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    for (kind, content), (following, expected) in itertools.pairwise([*blocks, ("", "")]):
        if kind == "bash":
            subprocess.run(["bash", "-euc", content], check=True, capture_output=True)
        elif kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(content, "docs/python-api.md", "exec"), names)
            assert following == "text"
            assert printed.getvalue() == expected
    assert {kind for kind, _ in blocks} == {"bash", "python", "text"}


def test_forms_of_a_question(qa) -> None:
    first = qa(QUESTION, PASSAGE)
    assert isinstance(first, Answer)
    assert first == qa(question=QUESTION, context=PASSAGE) == qa({"question": QUESTION, "context": PASSAGE})
    assert first == qa(Example("any id", QUESTION, PASSAGE))
    second = qa(OTHER)
    for many in (
        qa([{"question": QUESTION, "context": PASSAGE}, OTHER]),
        qa([QUESTION, OTHER["question"]], [PASSAGE, OTHER["context"]]),
        qa((Example("1", QUESTION, PASSAGE), OTHER)),
    ):
        assert isinstance(many, list)
        assert [one.answer for one in many] == [first.answer, second.answer] == [ANSWER, "Google"]
    assert qa([QUESTION], PASSAGE)[0].answer == ANSWER
    assert qa([]) == []


def test_top_k(qa) -> None:
    best = qa(QUESTION, PASSAGE, top_k=4)
    assert best == list(qa.n_best(QUESTION, PASSAGE).answers[:4])
    assert [one.score for one in best] == sorted((one.score for one in best), reverse=True)
    assert [len(one) for one in qa([QUESTION, QUESTION], PASSAGE, top_k=2)] == [2, 2]
    for count in (0, -1, 21):
        with pytest.raises(UsageError, match=f"top_k is {count}"):
            qa(QUESTION, PASSAGE, top_k=count)


def test_an_answer_reads_like_a_dict(qa) -> None:
    answer = qa(QUESTION, PASSAGE)
    assert dict(answer) == answer.as_dict()
    assert {"answer", "score", "start", "end"} < set(answer.keys())
    assert answer["answer"] == PASSAGE[answer["start"] : answer["end"]]
    with pytest.raises(KeyError):
        answer["as_dict"]


def test_a_stream_is_read_as_it_is_needed_and_keeps_its_order(engines, monkeypatch) -> None:
    qa = QuestionAnswerer(engines["fp32"])
    mark = qa.tokenizer.convert_tokens_to_ids(["treasure"])[0]
    monkeypatch.setattr(qa.session, "run", lambda batch: np.repeat((batch.ids == mark).astype(np.float32)[:, None] * 9, 2, 1))
    read = 0

    def endless():
        nonlocal read
        for read in itertools.count(1):
            yield {"question": "Where?", "context": "word " * (read * 37 % 200) + "treasure"}

    answers = qa(endless())
    assert iter(answers) is answers
    assert read == 0
    for number in range(1, 3001):
        answer = next(answers)
        assert (answer.answer, answer.start) == ("treasure", 5 * (number * 37 % 200))
    assert read < 3000 + 3 * 1024
    answers.close()


def test_the_window_of_an_answer(engines) -> None:
    """The logits of the window that an answer names are those of the answer, at its place."""
    qa = QuestionAnswerer(engines["fp32"], window=WindowOptions(sequence_length=64, doc_stride=20))
    passage = "Nothing is said here of the matter at all. " * 12 + OTHER["context"] + " And nothing here either." * 12
    answer = qa(OTHER["question"], passage)
    assert answer.answer == "Google"
    windows = qa.windows(OTHER["question"], passage)
    assert 0 < answer.window < len(windows) - 1
    assert len(windows) == qa.statistics.windows
    window = windows[answer.window]
    (place,) = np.flatnonzero(window.starts == answer.start)
    assert window.pieces[place] == "google"
    assert window.ends[place] == answer.end
    assert window.start_logits[place] == pytest.approx(answer.start_logit, abs=1e-4)
    assert window.end_logits[place] == pytest.approx(answer.end_logit, abs=1e-4)
    assert window.pieces[0] == "[CLS]"
    assert window.pieces[-1] == "[SEP]"
    assert window.starts[0] == window.starts[-1] == -1
    assert len(window.pieces) == len(window.starts) == len(window.ends) == len(window.start_logits) == len(window.end_logits) <= 64


def test_no_answer_has_a_window_too(engines) -> None:
    options = WindowOptions(sequence_length=64, doc_stride=20, squad_v2=True, null_threshold=-1000)
    qa = QuestionAnswerer(engines["fp32"], window=options)
    answer = qa(QUESTION, PASSAGE)
    assert answer.answer == ""
    logits = qa.windows(QUESTION, PASSAGE)[answer.window]
    assert logits.start_logits[0] == pytest.approx(answer.start_logit, abs=1e-4)


def test_questions_from_several_threads(qa) -> None:
    questions = [(QUESTION, PASSAGE), (OTHER["question"], OTHER["context"])] * 6
    with ThreadPoolExecutor(4) as pool:
        answers = [answer.answer for answer in pool.map(lambda pair: qa(*pair), questions)]
    assert answers == [ANSWER, "Google"] * 6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((" ", PASSAGE), InputError, "the question is empty"),
        ((QUESTION, "\n"), InputError, "the passage is empty"),
        (([QUESTION, ""], PASSAGE), InputError, "the question of question 2 is empty"),
        ((QUESTION,), UsageError, "question 1 has no context"),
        (({"question": QUESTION},), UsageError, 'it needs "question" and "context"'),
        (([{"question": QUESTION, "context": None}],), UsageError, "both texts"),
        ((OTHER, PASSAGE), UsageError, "of type dict beside a context"),
        (([QUESTION, QUESTION], [PASSAGE]), UsageError, "2 questions came with 1 contexts"),
        ((5,), UsageError, "of type int"),
        (([5], PASSAGE), UsageError, "of type int beside a context"),
        ((QUESTION, 5), UsageError, "the context is of type int; give a text, or a list of as many texts as questions"),
        ((QUESTION, Path("passage.txt")), UsageError, "the context is of type PosixPath; give a text"),
        (([QUESTION], (each for each in [PASSAGE])), UsageError, "the context is of type generator; give a text"),
        (([QUESTION], {"a": PASSAGE}), UsageError, "the context is of type dict; give a text"),
        (([QUESTION, QUESTION], [PASSAGE, 5]), UsageError, "the passage of question 2 is of type int; give a text"),
        ((Example("1", 5, PASSAGE),), UsageError, "the question is of type int; give a text"),
    ],
)
def test_mistakes_are_explained(qa, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        qa(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda qa: qa(QUESTION, PASSAGE, top_k="3"), "top_k is '3', 20 candidates are kept; give 1 to that"),
        (lambda qa: qa(QUESTION, PASSAGE, top_k=None), "top_k is None, 20 candidates are kept; give 1 to that"),
        (lambda qa: qa.n_best([], PASSAGE), "the question is of type list; give one question, and call again for the next"),
        (lambda qa: qa.windows([QUESTION, QUESTION], PASSAGE), "the question is of type list; give one question"),
        (lambda qa: WindowOptions(doc_stride="128"), "--doc-stride '128' is no whole number; give 1 or more"),
        (lambda qa: WindowOptions(n_best_size=0), "--n-best-size 0 is too small; give 1 or more"),
        (lambda qa: WindowOptions(null_threshold=float("nan")), "--null-threshold nan is no number; give one"),
        (lambda qa: QuestionAnswerer(None), "engine is None; give the path of a file"),
        (lambda qa: QuestionAnswerer("e", 5), "vocab_file is 5; give the path of a file"),
        (lambda qa: QuestionAnswerer("e", window={"doc_stride": 5}), "window is {'doc_stride': 5}; give WindowOptions"),
        (lambda qa: QuestionAnswerer("e", load={"threads": 5}), "load is {'threads': 5}; give LoadOptions"),
        (lambda qa: QuestionAnswerer("e", info=qa.info, batch_size="4"), "-b/--batch-size '4' is no whole number; give 1 or more"),
    ],
)
def test_arguments_of_the_wrong_kind_are_explained(qa, call: Callable, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        call(qa)
