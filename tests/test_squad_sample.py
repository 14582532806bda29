# SPDX-License-Identifier: Apache-2.0
"""The committed sample of SQuAD v1.1, and the script that draws it, on a small made-up file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "squad" / "dev-sample-1000.json"


def paragraphs_of(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    return [paragraph for article in dataset["data"] for paragraph in article["paragraphs"]]


def questions_of(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    return [question for paragraph in paragraphs_of(dataset) for question in paragraph["qas"]]


def lengths_of(dataset: dict[str, Any]) -> list[int]:
    """Return the passage length that each question sees, sorted."""
    return sorted(len(paragraph["context"]) for paragraph in paragraphs_of(dataset) for _ in paragraph["qas"])


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "make_squad_sample.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    dataset: dict[str, Any] = json.loads(SAMPLE.read_text(encoding="utf-8"))
    return dataset


@pytest.fixture
def made_up(tmp_path: Path) -> dict[str, Any]:
    """Write and return a file of 6 articles with 24 paragraphs each, of 3 to 5 questions: 576 questions."""
    articles = []
    for a in range(6):
        paragraphs = []
        for p in range(24):
            qas = [{"id": f"{a}-{p}-{q}", "question": "?", "answers": [{"text": "x", "answer_start": 0}]} for q in range(3 + p % 3)]
            paragraphs.append({"context": "x" * (100 + 37 * (a * 24 + p)), "qas": qas})
        articles.append({"title": f"article {a}", "paragraphs": paragraphs})
    dataset = {"version": "1.1", "data": articles}
    (tmp_path / "whole.json").write_text(json.dumps(dataset), encoding="utf-8")
    return dataset


def test_sample_has_a_thousand_questions_of_every_article(sample: dict[str, Any]) -> None:
    assert sample["version"] == "1.1"
    assert len({article["title"] for article in sample["data"]}) == len(sample["data"]) == 48
    ids = [question["id"] for question in questions_of(sample)]
    assert len(ids) == len(set(ids)) == 1000
    assert SAMPLE.stat().st_size < 500_000


def test_sample_answers_stand_in_their_paragraphs(sample: dict[str, Any]) -> None:
    for paragraph in paragraphs_of(sample):
        for question in paragraph["qas"]:
            assert question["question"].strip() and question["answers"]
            for answer in question["answers"]:
                assert answer["text"] and paragraph["context"].find(answer["text"]) == answer["answer_start"]


def test_sample_is_what_the_script_writes(tmp_path: Path) -> None:
    """All 1,000 of its 1,000 questions are the sample again, byte for byte."""
    assert run(str(SAMPLE), "--output", "again.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "again.json").read_bytes() == SAMPLE.read_bytes()


def test_drawn_paragraphs_are_whole_and_in_proportion(made_up: dict[str, Any], tmp_path: Path) -> None:
    result = run("whole.json", "--output", "drawn.json", "--questions", "100", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    drawn = json.loads((tmp_path / "drawn.json").read_text(encoding="utf-8"))
    assert len(questions_of(drawn)) == 100
    known = paragraphs_of(made_up)
    assert [paragraph for paragraph in known if paragraph in paragraphs_of(drawn)] == paragraphs_of(drawn)  # whole, in order
    assert [article["title"] for article in drawn["data"]] == [f"article {a}" for a in range(6)]
    assert all(15 <= len(questions_of({"data": [article]})) <= 18 for article in drawn["data"])  # a sixth is 16.7


def test_draw_has_passages_as_long_as_the_whole(made_up: dict[str, Any], tmp_path: Path) -> None:
    run("whole.json", "--output", "drawn.json", "--questions", "100", cwd=tmp_path)
    drawn = json.loads((tmp_path / "drawn.json").read_text(encoding="utf-8"))
    whole = lengths_of(made_up)
    for quarter in (0.25, 0.5, 0.75):
        length = whole[int(quarter * len(whole)) - 1]
        shorter = sum(other <= length for other in lengths_of(drawn)) / 100
        assert shorter == pytest.approx(quarter, abs=0.05)


def test_draw_is_fixed_by_the_seed(made_up: dict[str, Any], tmp_path: Path) -> None:
    for name, seed in (("one", "20"), ("two", "20"), ("other", "21")):
        assert run("whole.json", "--output", f"{name}.json", "--questions", "60", "--seed", seed, cwd=tmp_path).returncode == 0
    one, two, other = ((tmp_path / f"{name}.json").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    first = [paragraph["qas"][0]["id"] for paragraph in paragraphs_of(json.loads(one))][:4]
    assert first == ["0-9-0", "0-12-0", "0-16-0", "1-0-0"]  # whatever the version of Python


@pytest.mark.parametrize(
    ("arguments", "words"), [(["absent.json"], "absent.json"), (["whole.json", "--questions", "5"], "--questions")]
)
def test_bad_input_is_one_sentence(made_up: dict[str, Any], tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run(*arguments, "--output", "drawn.json", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert words in result.stderr and not (tmp_path / "drawn.json").exists()
