# SPDX-License-Identifier: Apache-2.0
"""Windows over long passages, and the way from logits to answers."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import MODEL
from helpers.data_processing import NBest, Window, WindowOptions, choose_answers, find_spans, make_windows
from helpers.errors import UsageError
from helpers.tokenization import FullTokenizer, Tokens

TOKENIZER = FullTokenizer.from_file(MODEL / "vocab.txt")


def cut(question: str, passage: str, **options: int) -> tuple[Tokens, list[Window], WindowOptions]:
    settings = WindowOptions(**options)
    asked, pieces = TOKENIZER.encode([question, passage])
    return pieces, make_windows(asked, pieces, TOKENIZER, settings), settings


def answers(question: str, passage: str, marks: dict[tuple[int, int], tuple[float, float]], **options) -> NBest:
    """Return what is chosen when the logits are 0 but at the (start, end) pieces given."""
    pieces, windows, settings = cut(question, passage, **options)
    found = []
    for window in windows:
        logits = np.zeros((len(window.ids), 2), np.float32)
        for (start, end), (start_logit, end_logit) in marks.items():
            for column, piece, logit in ((0, start, start_logit), (1, end, end_logit)):
                place = piece - window.first_piece + window.text_begin
                if piece < 0:
                    logits[0, column] = logit
                elif window.text_begin <= place < len(window.ids) - 1:
                    logits[place, column] = logit
        found.append(find_spans(window, logits, settings))
    return choose_answers(found, passage, pieces, settings)


WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def test_a_window_is_question_and_passage_between_special_tokens() -> None:
    _, (window,), _ = cut("who ?", "one two three", sequence_length=20)
    assert window.ids.tolist() == TOKENIZER.convert_tokens_to_ids(["[CLS]", "who", "?", "[SEP]", "one", "two", "three", "[SEP]"])
    assert window.segments.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_windows_start_every_stride_and_cover_the_passage() -> None:
    pieces, windows, _ = cut("who ?", WORDS, sequence_length=11, doc_stride=3)
    assert [window.first_piece for window in windows] == [0, 3, 6, 9, 12][: len(windows)]
    assert windows[-1].first_piece + len(windows[-1].owned) == len(pieces)
    owned = np.zeros(len(pieces), int)
    for window in windows:
        owned[window.first_piece : window.first_piece + len(window.owned)] += window.owned
    assert owned.tolist() == [1] * len(pieces)  # every piece has most context in exactly one window


def test_a_stride_beyond_the_room_leaves_no_gap() -> None:
    pieces, windows, _ = cut("who ?", WORDS, sequence_length=11, doc_stride=100)
    covered = [piece for window in windows for piece in range(window.first_piece, window.first_piece + len(window.owned))]
    assert covered == list(range(len(pieces)))


def test_a_piece_belongs_to_the_window_with_most_context() -> None:
    _, windows, _ = cut("who ?", WORDS, sequence_length=13, doc_stride=4)  # windows of 8 pieces at 0, 4, 8
    assert windows[0].owned.tolist() == [True] * 6 + [False] * 2
    assert windows[1].owned.tolist() == [False] * 2 + [True] * 4 + [False] * 2


def test_a_long_question_is_cut_to_what_is_asked() -> None:
    _, (window,), _ = cut(WORDS, "one two", sequence_length=20, max_query_length=4)
    assert window.text_begin == 6


def test_a_question_as_long_as_the_window_is_refused_not_looped_on() -> None:
    with pytest.raises(UsageError, match="61 word pieces leaves no room .* window of 64"):
        cut("word " * 70, "a passage", sequence_length=64, max_query_length=61)


def test_an_empty_passage_has_no_windows_and_the_empty_answer() -> None:
    pieces, windows, settings = cut("who ?", "")
    assert windows == []
    (only,) = choose_answers([], "", pieces, settings).answers
    assert (only.answer, only.score) == ("", 1.0)


def test_the_answer_is_cut_from_the_original_text() -> None:
    passage = "It is  the\nCafé\u00a0Noir, in Zürich."
    best = answers("who ?", passage, {(2, 4): (5, 5)})
    assert best.answers[0].answer == "the\nCafé\u00a0Noir"
    assert passage[best.answers[0].start : best.answers[0].end] == best.answers[0].answer


def test_the_best_pair_wins_and_probabilities_sum_to_one() -> None:
    best = answers("who ?", WORDS, {(2, 3): (4, 6), (7, 7): (3, 8)})
    assert best.answers[0].answer == "three four five six seven eight" or best.answers[0].answer == "eight"
    assert best.answers[0].start_logit + best.answers[0].end_logit == pytest.approx(12)
    assert sum(answer.score for answer in best.answers) == pytest.approx(1)
    assert len({answer.answer for answer in best.answers}) == len(best.answers) <= 20


def test_answers_are_at_most_as_long_as_allowed() -> None:
    best = answers("who ?", WORDS, {(0, 9): (9, 9)}, max_answer_length=3)
    assert best.answers[0].answer != "one two three four five six seven eight nine ten"
    assert max(len(answer.answer.split()) for answer in best.answers) <= 3


def test_an_answer_in_two_windows_counts_once() -> None:
    best = answers("who ?", WORDS, {(5, 6): (5, 5)}, sequence_length=13, doc_stride=4)
    assert [answer.answer for answer in best.answers].count("six seven") == 1
    assert best.answers[0].answer == "six seven"


def test_the_same_text_at_two_places_is_one_answer_at_the_better_one() -> None:
    best = answers("who ?", "red fish blue fish", {(1, 1): (4, 4), (3, 3): (6, 6)})
    assert [a.answer for a in best.answers].count("fish") == 1
    assert best.answers[0].start == 14


def test_no_answer_is_never_given_unless_asked_for() -> None:
    best = answers("who ?", WORDS, {(-1, -1): (9, 9), (2, 3): (1, 1)})
    assert all(answer.answer for answer in best.answers)
    assert best.null_odds == pytest.approx(16)


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, ""), (15.9, ""), (16.1, "three four")])
def test_no_answer_wins_by_more_than_the_threshold(threshold: float, expected: str) -> None:
    best = answers("who ?", WORDS, {(-1, -1): (9, 9), (2, 3): (1, 1)}, squad_v2=True, null_threshold=threshold)
    assert best.answers[0].answer == expected
    assert "" in [answer.answer for answer in best.answers]


def test_the_null_score_is_the_smallest_of_all_windows() -> None:
    _, windows, settings = cut("who ?", WORDS, sequence_length=13, doc_stride=4)
    found = []
    for number, window in enumerate(windows):
        logits = np.zeros((len(window.ids), 2), np.float32)
        logits[0] = 5 - number
        found.append(find_spans(window, logits, settings))
    pieces = TOKENIZER.encode([WORDS])[0]
    assert choose_answers(found, WORDS, pieces, settings).null_odds == pytest.approx(2 * (5 - (len(windows) - 1)))
