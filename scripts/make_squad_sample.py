#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw a fixed sample of whole paragraphs, with every article, from a SQuAD file; the same input gives the same bytes."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from bisect import bisect_right
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script runs from any directory

from helpers.errors import BertError, InputError
from helpers.files import read_json
from helpers.squad_metrics import gold_answers

Paragraph = dict[str, Any]
SAMPLE = Path(__file__).resolve().parents[1] / "squad" / "dev-sample-1000.json"
QUESTIONS = 1000
SEED = 20
DRAWS = 200  # the draw whose passage lengths are most like the whole file's is kept


def count(paragraphs: list[Paragraph]) -> int:
    """Return the number of questions."""
    return sum(len(paragraph["qas"]) for paragraph in paragraphs)


def lengths(paragraphs: list[Paragraph]) -> list[int]:
    """Return the passage length in characters that each question sees, sorted."""
    return sorted(len(paragraph["context"]) for paragraph in paragraphs for _ in paragraph["qas"])


def distance(some: list[int], others: list[int]) -> float:
    """Return the Kolmogorov-Smirnov distance of two sorted lists: the largest gap between their distributions."""
    return max(abs(bisect_right(some, x) / len(some) - bisect_right(others, x) / len(others)) for x in {*some, *others})


def some_paragraphs(paragraphs: list[Paragraph], wanted: int, rng: random.Random) -> list[Paragraph]:
    """Return paragraphs chosen at random with `wanted` questions together, or as near as whole paragraphs come to it."""
    # Only random() itself is promised to give the same numbers in every Python version; shuffle() is not.
    order = sorted(range(len(paragraphs)), key=lambda _: rng.random())
    subsets: dict[int, tuple[int, ...]] = {0: ()}  # number of questions -> the first subset found that has it
    for index in order:
        for total, subset in list(subsets.items()):
            subsets.setdefault(total + len(paragraphs[index]["qas"]), (*subset, index))
        if wanted in subsets and wanted > 0:
            break
    nearest = min((total for total in subsets if total > 0), key=lambda total: (abs(total - wanted), total))
    return [paragraphs[index] for index in sorted(subsets[nearest])]


def draw(articles: list[list[Paragraph]], questions: int, rng: random.Random) -> list[list[Paragraph]] | None:
    """Choose paragraphs of every article in proportion to its questions; None if they are not `questions` together.

    What one article has too many or too few is made up by the next, the largest (and most flexible) article last.
    """
    chosen: list[list[Paragraph]] = [[] for _ in articles]
    whole = sum(map(count, articles))
    seen = taken = 0
    for index in sorted(range(len(articles)), key=lambda index: count(articles[index])):
        seen += count(articles[index])
        chosen[index] = some_paragraphs(articles[index], round(questions * seen / whole) - taken, rng)
        taken += count(chosen[index])
    return chosen if taken == questions else None


def sample(dataset: dict[str, Any], questions: int = QUESTIONS, seed: int = SEED) -> dict[str, Any]:
    """Return a dataset of exactly `questions` questions in whole paragraphs, with every article that has questions."""
    articles = [article for article in dataset["data"] if count(article["paragraphs"])]
    paragraphs = [[paragraph for paragraph in article["paragraphs"] if paragraph["qas"]] for article in articles]
    target = lengths([paragraph for article in paragraphs for paragraph in article])
    rng = random.Random(seed)
    draws = [chosen for _ in range(DRAWS) if (chosen := draw(paragraphs, questions, rng))]
    if not draws:
        raise InputError(
            f"{questions} questions cannot be drawn as whole paragraphs of all {len(articles)} articles "
            f"({len(target)} questions); choose another number with --questions"
        )
    best = min(draws, key=lambda chosen: distance(lengths([paragraph for article in chosen for paragraph in article]), target))
    data = [article | {"paragraphs": chosen} for article, chosen in zip(articles, best, strict=True)]
    return dataset | {"data": data}


def write(dataset: dict[str, Any], path: Path) -> None:
    """Write the dataset as JSON with one article a line; a failure leaves an older file as it was."""
    head = json.dumps({key: value for key, value in dataset.items() if key != "data"})[1:-1]
    articles = ",\n".join(json.dumps(article) for article in dataset["data"])
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(f'{{{head}{", " if head else ""}"data": [\n{articles}\n]}}\n', encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another place with --output") from error
    finally:
        unfinished.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="SQuAD file to draw from, such as dev-v1.1.json")
    parser.add_argument("--output", type=Path, default=SAMPLE, help="file to write (default: squad/dev-sample-1000.json)")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="number of questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="start of the random choice (default: %(default)s)")
    args = parser.parse_args(arguments)
    dataset = read_json(args.dataset, "dataset")
    gold_answers(dataset)  # refuses what is not a SQuAD file
    if not all(isinstance(p.get("context"), str) for article in dataset["data"] for p in article["paragraphs"]):
        raise InputError(f"{args.dataset} has a paragraph without a context; give a complete SQuAD file")
    drawn = sample(dataset, args.questions, args.seed)
    write(drawn, args.output)
    print(f"{args.output}: {args.questions} questions of {len(drawn['data'])} articles", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BertError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(error.status)
