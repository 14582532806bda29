# SPDX-License-Identifier: Apache-2.0
"""The forms in which a caller may ask: one question, a list or a stream, as Hugging Face's question-answering pipeline has them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeAlias

from helpers.data_processing import Example
from helpers.errors import InputError, UsageError

Question: TypeAlias = Mapping[str, str] | Example  # a mapping has the keys "question" and "context"
Questions: TypeAlias = Sequence[str | Question]
Stream: TypeAlias = Iterable[str | Question]
Contexts: TypeAlias = str | Sequence[str] | None


def is_one(question: object) -> bool:
    """Return whether this is a single question rather than a list or a stream of them."""
    return isinstance(question, str | Mapping | Example) or not isinstance(question, Iterable)


def examples(question: str | Question | Stream, context: Contexts) -> Iterator[Example]:
    """Yield every question asked, with its passage; of a stream, no further than the caller has read.

    question: a text, a Question, or any number of either. context: with texts, their passage, or one passage a question.
    Raises UsageError where the two do not go together, InputError for an empty text.
    """
    asked: Iterable[Any] = [question] if is_one(question) else question  # type: ignore[list-item, assignment]
    if isinstance(context, str) or context is None:
        pairs: Iterable[tuple[Any, str | None]] = ((each, context) for each in asked)
    elif not isinstance(context, Collection) or isinstance(context, Mapping | Set | bytes):
        raise UsageError(f"the context is of type {type(context).__name__}; give a text, or a list of as many texts as questions")
    else:
        pairs = _side_by_side(asked, context)
    for number, (each, passage) in enumerate(pairs, 1):
        example = _example(each, passage, number)
        for what, text in (("question", example.question), ("passage", example.passage)):
            which = f"the {what}" if is_one(question) else f"the {what} of question {number}"
            if not isinstance(text, str):
                raise UsageError(f"{which} is of type {type(text).__name__}; give a text")
            if not text.strip():
                raise InputError(f"{which} is empty; give it some text")
        yield example


def one_example(question: str, passage: str) -> Example:
    """Return a question with its passage; raise UsageError for several."""
    if not is_one(question):
        raise UsageError(f"the question is of type {type(question).__name__}; give one question, and call again for the next")
    return next(examples(question, passage))


def _side_by_side(asked: Iterable[Any], contexts: Sequence[str]) -> Iterable[tuple[Any, str | None]]:
    """Return questions with their passages; raise UsageError where they are not equally many."""
    asked = list(asked)
    if len(asked) != len(contexts):
        raise UsageError(f"{len(asked)} questions came with {len(contexts)} contexts; give one for all, or as many as questions")
    return zip(asked, contexts, strict=True)


def _example(asked: Any, context: str | None, number: int) -> Example:
    """Return one question as an Example."""
    if isinstance(asked, str) and context is not None:
        return Example("", asked, context)
    if context is None and isinstance(asked, Example):
        return asked
    if context is None and isinstance(asked, Mapping):
        texts = asked.get("question"), asked.get("context")
        if isinstance(texts[0], str) and isinstance(texts[1], str):
            return Example("", texts[0], texts[1])
        raise UsageError(f'question {number} is a dict with the keys {list(asked)}; it needs "question" and "context", both texts')
    if isinstance(asked, str):
        raise UsageError(f"question {number} has no context; give the passage as context=..., or a dict with question and context")
    found = type(asked).__name__ + ("" if context is None else " beside a context")
    raise UsageError(f"question {number} is of type {found}; give a text with context=..., or a dict with question and context")
