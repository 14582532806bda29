# SPDX-License-Identifier: Apache-2.0
"""SQuAD scores: normalised answers, exact match, F1, and the totals of the v1.1 and v2.0 evaluations.

Reads parsed JSON only and needs only the standard library; the scripts in squad/ do the printing.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from helpers.errors import InputError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

Golds = dict[str, list[str]]  # question id -> answer texts; an empty list means that the passage has no answer
Metric = Callable[[str, str], float]


def normalise_answer(text: str) -> str:
    """Return `text` in lower case, without ASCII punctuation, the words a, an, the, and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1.0 if both answers are equal once normalised, else 0.0."""
    return float(normalise_answer(prediction) == normalise_answer(gold))


def f1(prediction: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall over the normalised words, each counted as often as it occurs.

    Two answers that both normalise to nothing agree, so they score 1.0 as they do in `exact_match`.
    """
    predicted, wanted = normalise_answer(prediction).split(), normalise_answer(gold).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def best_over(metric: Metric, prediction: str, golds: Sequence[str]) -> float:
    """Return the best score over the gold answers; where there are none, the right answer is the empty string."""
    return max(metric(prediction, gold) for gold in (golds or [""]))


def gold_answers(dataset: Any) -> Golds:
    """Return the answer texts of every question of a parsed SQuAD file; raise InputError if it is not one."""
    golds: Golds = {}
    try:
        for article in dataset["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    key = str(question["id"])
                    if key in golds:
                        raise InputError(f"the dataset has the question id {key!r} twice; give every question an id of its own")
                    golds[key] = [_text(answer["text"]) for answer in question.get("answers") or []]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the dataset does not have the form of a SQuAD file ({type(error).__name__}: {error}); "
            "it must hold data[] > paragraphs[] > qas[] > id, answers[] > text"
        ) from error
    if not golds:
        raise InputError("the dataset has no questions; give a SQuAD file with at least one")
    return golds


def missing_note(golds: Golds, predictions: Mapping[str, str], shown: int = 5) -> str:
    """Return a sentence about the questions that have no prediction, with the first `shown` ids; empty if all have one."""
    missing = [key for key in golds if key not in predictions]
    if not missing:
        return ""
    more = ", ..." if len(missing) > shown else ""
    return f"{len(missing)} of {len(golds)} questions have no prediction and score 0: {', '.join(missing[:shown])}{more}"


def raw_scores(golds: Golds, predictions: Mapping[str, str], metric: Metric) -> dict[str, float]:
    """Return the score of every question, 0 to 1; a question without a prediction scores 0."""
    return {key: best_over(metric, predictions[key], texts) if key in predictions else 0.0 for key, texts in golds.items()}


def evaluate_v11(dataset: Any, predictions: Mapping[str, str]) -> dict[str, float]:
    """Return {"exact_match", "f1"}: averages x 100 over all questions of a parsed SQuAD v1.1 file."""
    golds = gold_answers(dataset)
    check_predictions(predictions)
    return {
        "exact_match": _percent(raw_scores(golds, predictions, exact_match).values()),
        "f1": _percent(raw_scores(golds, predictions, f1).values()),
    }


def evaluate_v20(
    dataset: Any,
    predictions: Mapping[str, str],
    na_probs: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Return the SQuAD v2.0 result: exact, f1, total, the same for HasAns_ and NoAns_ questions, and best_ thresholds.

    `na_probs` maps question ids to the probability of "no answer"; above `threshold` it replaces the prediction
    by "no answer". With it the result also has best_exact, best_exact_thresh, best_f1 and best_f1_thresh.
    """
    golds = gold_answers(dataset)
    check_predictions(predictions)
    known = None if na_probs is None else probabilities(golds, predictions, na_probs)
    result: dict[str, float] = {}
    tuned: dict[str, float] = {}
    scores = {}
    for name, metric in (("exact", exact_match), ("f1", f1)):
        raw = v20_scores(golds, predictions, metric)
        scores[name] = raw
        if known is not None:
            scores[name] = raw | {key: float(not golds[key]) for key, value in known.items() if value > threshold}
            best, best_threshold = best_threshold_score(golds, raw, known)
            tuned |= {f"best_{name}": best, f"best_{name}_thresh": best_threshold}
    answerable = {key for key, texts in golds.items() if texts}
    for prefix, keys in (("", golds.keys()), ("HasAns_", answerable), ("NoAns_", golds.keys() - answerable)):
        if keys:
            for name, by_question in scores.items():
                result[prefix + name] = _percent([score for key, score in by_question.items() if key in keys])
            result[f"{prefix}total"] = len(keys)
    return result | tuned


def v20_scores(golds: Golds, predictions: Mapping[str, str], metric: Metric) -> dict[str, float]:
    """Return `raw_scores` by the v2.0 rule: gold answers that normalise to nothing do not count."""
    return raw_scores(
        {key: [text for text in texts if normalise_answer(text)] for key, texts in golds.items()}, predictions, metric
    )


def best_threshold_score(golds: Golds, raw: Mapping[str, float], na_probs: Mapping[str, float]) -> tuple[float, float]:
    """Return the best total (x 100) over all thresholds and the lowest threshold that reaches it.

    Starts from "no answer" everywhere and lets in the questions by rising probability, equal ones together, so
    evaluating again with the returned threshold gives the returned total. `na_probs` is that of `probabilities`.
    """
    known = sorted(na_probs, key=lambda key: na_probs[key])
    current = float(sum(not golds[key] for key in known))  # every unanswerable question is right
    best, best_threshold = current, 0.0
    if known and na_probs[known[0]] <= 0.0:
        best_threshold = na_probs[known[0]] - 1.0  # 0 would let the first questions in
    for position, key in enumerate(known):
        current += raw[key] - float(not golds[key])
        last_of_equals = position + 1 == len(known) or na_probs[known[position + 1]] != na_probs[key]
        if last_of_equals and current > best:
            best, best_threshold = current, na_probs[key]
    return 100.0 * best / len(golds), best_threshold


def precision_recall(
    golds: Golds, scores: Mapping[str, float], na_probs: Mapping[str, float]
) -> tuple[float, list[float], list[float]]:
    """Return the average precision (x 100) and the curve: precisions and recalls at every distinct probability.

    Questions are let in by rising probability of "no answer". Precision is the sum of scores over the questions let
    in, recall the sum of scores over the answerable questions; only answerable questions earn scores.
    """
    known = sorted(na_probs, key=lambda key: na_probs[key])
    answerable = sum(bool(texts) for texts in golds.values())
    average, earned = 0.0, 0.0
    precisions, recalls = [1.0], [0.0]
    for position, key in enumerate(known):
        earned += scores[key] if golds[key] else 0.0
        if position + 1 == len(known) or na_probs[known[position + 1]] != na_probs[key]:
            precision, recall = earned / (position + 1), earned / answerable if answerable else 0.0
            average += precision * (recall - recalls[-1])
            precisions.append(precision)
            recalls.append(recall)
    return 100.0 * average, precisions, recalls


def probabilities(golds: Golds, predictions: Mapping[str, str], na_probs: Any) -> dict[str, float]:
    """Return the no-answer probability of every predicted question of the dataset; raise InputError if one has none."""
    if not isinstance(na_probs, Mapping):
        raise InputError("the no-answer file does not hold a JSON object; it must map question ids to probabilities")
    found = {}
    for key in golds:
        if key in predictions:
            value = na_probs.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e300:
                raise InputError(
                    f"the no-answer file has {value!r:.60} for question {key!r}; give every predicted question a number"
                )
            found[key] = float(value)
    return found


def check_predictions(predictions: Any) -> None:
    """Raise InputError unless the parsed predictions map question ids to texts."""
    if not isinstance(predictions, Mapping):
        raise InputError("the predictions do not form a JSON object; they must map question ids to answer texts")
    for key, text in predictions.items():
        if not isinstance(text, str):
            raise InputError(f"the prediction of question {key!r} is {text!r:.60}; it must be a text")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"answer text {value!r:.60}")
    return value


def _percent(scores: Iterable[float]) -> float:
    total, count = 0.0, 0
    for score in scores:  # not sum(): from Python 3.12 on it rounds differently
        total += score
        count += 1
    return 100.0 * total / count
