# SPDX-License-Identifier: Apache-2.0
"""The two evaluation scripts as a user runs them: from another directory, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.squad_metrics import best_over, evaluate_v11, evaluate_v20, exact_match, f1, normalise_answer

Run = Callable[..., subprocess.CompletedProcess[str]]
SQUAD = Path(__file__).resolve().parents[1] / "squad"


def dataset(answers: dict[str, list[str]], version: str = "1.1") -> dict[str, Any]:
    qas = [
        {"id": key, "question": "?", "answers": [{"text": text, "answer_start": 0} for text in texts]}
        for key, texts in answers.items()
    ]
    return {"version": version, "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": qas}]}]}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs a script on JSON contents (or text, or None for no file) and further arguments."""

    def run_script(script: str, data: Any, predictions: Any, *more: str, **files: Any) -> subprocess.CompletedProcess[str]:
        for name, content in {"data": data, "predictions": predictions, **files}.items():
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
        command = [sys.executable, str(SQUAD / script), "data.json", "predictions.json", *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run_script


def assert_one_sentence(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert result.stderr.count("\n") == 1 or status == 2  # argparse puts the usage before it
    for word in words:
        assert word in last


# What a score is


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's\n(big) a-hat!", "cats big ahat"),
        ("an apple a day", "apple day"),
        ("another theatre", "another theatre"),
        ("“Zürich”", "“zürich”"),
        ("the A, an.", ""),
    ],
)
def test_normalised_answers(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


def test_f1_counts_words_as_often_as_they_occur() -> None:
    assert f1("new new york", "New York") == pytest.approx(0.8)  # 2 of 3 and 2 of 2
    assert f1("tora tora tora", "Tora! Tora!") == pytest.approx(0.8)
    assert f1("york new", "New York") == 1.0
    assert f1("Boston", "New York") == 0.0
    assert best_over(f1, "new york", ["Boston", "new york city"]) == pytest.approx(0.8)


def test_answers_that_normalise_to_nothing_agree_in_both_metrics() -> None:
    assert exact_match("the", "A!") == f1("the", "A!") == 1.0
    assert f1("the", "cat") == f1("cat", "the") == 0.0


def test_published_digits() -> None:
    """8,883 right ones of 10,570 is the exact match published for Megatron-large, with all its digits."""
    data = dataset({str(i): ["yes"] for i in range(10570)})
    assert evaluate_v11(data, {str(i): "yes" if i < 8883 else "no" for i in range(10570)})["exact_match"] == 84.03973509933775


# evaluate-v1.1.py

ANSWERS = {"q1": ["New York", "York"], "q2": ["1973"]}


def test_v11_prints_verdict_and_scores(run: Run) -> None:
    result = run("evaluate-v1.1.py", dataset(ANSWERS), {"q1": "the york", "q2": "May 1973", "other": "x"}, "83.8")
    assert result.returncode == 0 and result.stderr == ""
    verdict, scores = result.stdout.splitlines()
    assert verdict.startswith("&&&& PASSED ")
    assert json.loads(scores) == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}  # 83.33, 0.47 below


@pytest.mark.parametrize(
    ("options", "verdict", "status"),
    [
        (["50.5"], "PASSED", 0),
        (["50.6"], "FAILED", 0),
        (["50.6", "--strict-status"], "FAILED", 1),
        (["50.5", "--strict-status"], "PASSED", 0),
        (["50.6", "--tolerance", "0.7"], "PASSED", 0),
        (["50.1", "--tolerance", "0", "--strict-status"], "FAILED", 1),
    ],
)
def test_v11_threshold(run: Run, options: list[str], verdict: str, status: int) -> None:
    result = run("evaluate-v1.1.py", dataset(ANSWERS), {"q1": "New York", "q2": "no"}, *options)
    assert result.stdout.startswith(f"&&&& {verdict} ")
    assert json.loads(result.stdout.splitlines()[1])["f1"] == 50.0
    assert result.returncode == status
    assert ("below the reference" in result.stderr) == (verdict == "FAILED")


def test_v11_says_what_it_assumes(run: Run) -> None:
    data = dataset(ANSWERS | {"q3": [], "q4": []}, version="v2.0")
    result = run("evaluate-v1.1.py", data, {"q1": "York", "q3": "", "q4": "something"}, "50")
    assert json.loads(result.stdout.splitlines()[1]) == {"exact_match": 50.0, "f1": 50.0}
    for words in ("1 of 4 questions have no prediction and score 0: q2", "version 'v2.0'", "2 of 4 questions have no gold answer"):
        assert words in result.stderr


@pytest.mark.parametrize("script", ["evaluate-v1.1.py", "evaluate-v2.0.py"])
@pytest.mark.parametrize(
    ("data", "predictions", "words"),
    [
        (None, {}, ["data.json", "cannot be read"]),
        (dataset(ANSWERS), None, ["predictions.json", "cannot be read"]),
        (dataset(ANSWERS), '{"q1": "Yor', ["predictions.json", "not valid JSON"]),
        (dataset(ANSWERS), ["York"], ["JSON object"]),
        (dataset(ANSWERS), {"q1": 7}, ["'q1'", "7"]),
        ({"data": [{"paragraphs": 3}]}, {}, ["SQuAD file"]),
        ([1], {}, ["SQuAD file"]),
        (dataset({}), {}, ["no questions"]),
        ("[" * 100000, {}, ["data.json", "not valid JSON"]),
    ],
)
def test_unusable_files_give_one_sentence(run: Run, script: str, data: Any, predictions: Any, words: list[str]) -> None:
    more = ["90"] if script == "evaluate-v1.1.py" else []
    assert_one_sentence(run(script, data, predictions, *more), 1, "error: ", *words)


@pytest.mark.parametrize(
    "more", [[], ["ninety"], ["nan"], ["90", "--tolerance", "-1"], ["90", "--strict-statsu"], ["90", "--fp16"]]
)
def test_v11_wrong_usage(run: Run, more: list[str]) -> None:
    assert_one_sentence(run("evaluate-v1.1.py", dataset(ANSWERS), {}, *more), 2, "error")


# evaluate-v2.0.py

V20 = dataset({"a": ["red"], "b": ["the", "old blue"], "n1": [], "n2": []}, version="v2.0")
PREDICTIONS = {"a": "red", "b": "blue", "n1": "", "n2": "green"}
PROBABILITIES = {"a": 0.1, "b": 0.6, "n1": 0.5, "n2": 0.3}


def test_v20_result(run: Run) -> None:
    result = run("evaluate-v2.0.py", V20, PREDICTIONS)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith('{\n  "exact": 50.0,\n')
    assert json.loads(result.stdout) == {
        "exact": 50.0,
        "f1": pytest.approx(200 / 3),
        "total": 4,
        "HasAns_exact": 50.0,
        "HasAns_f1": pytest.approx(250 / 3),
        "HasAns_total": 2,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }


def test_v20_keys_only_where_there_are_such_questions() -> None:
    assert set(evaluate_v20(dataset({"a": ["red"]}), {})) == {"exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total"}


def test_v20_missing_prediction_scores_nothing(run: Run) -> None:
    result = run("evaluate-v2.0.py", V20, {"a": "red", "b": "old blue"}, "-v")
    assert result.returncode == 0
    scores = json.loads(result.stdout)
    assert (scores["exact"], scores["HasAns_exact"], scores["NoAns_exact"]) == (50.0, 100.0, 0.0)
    assert "2 of 4 questions have no prediction and score 0: n1, n2" in result.stderr


def test_v20_threshold_replaces_answers_by_no_answer() -> None:
    scores = evaluate_v20(V20, PREDICTIONS, PROBABILITIES, threshold=0.2)  # only a keeps its answer
    assert (scores["HasAns_exact"], scores["NoAns_exact"]) == (50.0, 100.0)
    equal = evaluate_v20(V20, PREDICTIONS, PROBABILITIES, threshold=0.3)  # a probability at the threshold is not above it
    assert equal["NoAns_exact"] == 50.0


def test_v20_gold_answers_that_normalise_to_nothing_do_not_count() -> None:
    scores = evaluate_v20(V20, PREDICTIONS | {"b": ""})
    assert (scores["HasAns_exact"], scores["HasAns_f1"]) == (50.0, 50.0)


def test_v20_best_threshold_when_no_answer_is_best_everywhere() -> None:
    wrong, zeros = dict.fromkeys(PREDICTIONS, "wrong"), dict.fromkeys(PREDICTIONS, 0.0)
    tuned = evaluate_v20(V20, wrong, zeros)
    assert (tuned["exact"], tuned["best_exact"]) == (0.0, 50.0)
    assert evaluate_v20(V20, wrong, zeros, tuned["best_exact_thresh"])["exact"] == 50.0


def test_v20_best_threshold_in_an_output_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("older")
    result = run("evaluate-v2.0.py", V20, PREDICTIONS, "-n", "probs.json", "-o", "out.json", probs=PROBABILITIES)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    scores = json.loads((tmp_path / "out.json").read_text())
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (75.0, 0.1)  # a answered, n1 and n2 not
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "out.json", "predictions.json", "probs.json"]


@pytest.mark.parametrize("place", ["data.json/out.json", ".", "/"])
def test_v20_unwritable_output(run: Run, place: str) -> None:
    result = run("evaluate-v2.0.py", V20, PREDICTIONS, "-o", place)
    assert_one_sentence(result, 1, f"error: {place} ", "file" if place[0] in "./" else "cannot be written")


@pytest.mark.parametrize("name", ["data.json", "./predictions.json", "probs.json"])
def test_v20_output_over_an_input(run: Run, tmp_path: Path, name: str) -> None:
    result = run("evaluate-v2.0.py", V20, PREDICTIONS, "-n", "probs.json", "-o", name, probs=PROBABILITIES)
    assert_one_sentence(result, 2, f"error: -o/--out-file names {Path(name)}, which ", " uses too; give each a file of its own")
    assert "exact" not in json.loads((tmp_path / name).read_text())


def test_v20_output_through_a_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    assert run("evaluate-v2.0.py", V20, PREDICTIONS, "-o", "link.json").returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["total"] == 4


def test_v20_output_makes_its_directory(run: Run, tmp_path: Path) -> None:
    assert run("evaluate-v2.0.py", V20, PREDICTIONS, "-o", "new/out.json").returncode == 0
    assert json.loads((tmp_path / "new" / "out.json").read_text())["total"] == 4
    streamed = run("evaluate-v2.0.py", V20, PREDICTIONS, "-o", "/dev/stdout")
    assert json.loads(streamed.stdout)["total"] == 4


@pytest.mark.parametrize(
    "probabilities", [PROBABILITIES, {"a": 0, "b": 0, "n1": 0, "n2": 0}, {"a": 0.9, "b": 0.8, "n1": -3, "n2": 0.9}]
)
def test_v20_best_scores_are_reached_at_their_thresholds(probabilities: dict[str, float]) -> None:
    tuned = evaluate_v20(V20, PREDICTIONS, probabilities)
    for name in ("exact", "f1"):
        threshold = tuned[f"best_{name}_thresh"]
        assert evaluate_v20(V20, PREDICTIONS, probabilities, threshold)[name] == pytest.approx(tuned[f"best_{name}"])
        others = [evaluate_v20(V20, PREDICTIONS, probabilities, other)[name] for other in (-9, *probabilities.values())]
        assert tuned[f"best_{name}"] == pytest.approx(max(others))


@pytest.mark.parametrize("more", [["-t", "0.5"], ["-p", "images"], ["-n", "probs.json", "-t", "high"], ["extra"], ["--out"]])
def test_v20_wrong_usage(run: Run, more: list[str]) -> None:
    assert_one_sentence(run("evaluate-v2.0.py", V20, PREDICTIONS, *more, probs=PROBABILITIES), 2, "error")


@pytest.mark.parametrize("probabilities", [{"a": 0.1}, PROBABILITIES | {"b": "high"}, '{"a": NaN}', [0.1]])
def test_v20_unusable_probabilities(run: Run, probabilities: Any) -> None:
    assert_one_sentence(run("evaluate-v2.0.py", V20, PREDICTIONS, "-n", "probs.json", probs=probabilities), 1, "no-answer file")


def test_v20_images(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("evaluate-v2.0.py", V20, PREDICTIONS, "-n", "probs.json", "-p", "images", probs=PROBABILITIES)
    assert result.returncode == 0, result.stderr
    images = ["na_prob_hist_hasAns", "na_prob_hist_noAns", "pr_exact", "pr_f1", "pr_oracle"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"{name}.png" for name in images]
    scores = json.loads(result.stdout)  # by rising probability: a (right), n2, n1, b (answerable, half wrong)
    assert scores["pr_exact_ap"] == pytest.approx(50.0)
    assert scores["pr_oracle_ap"] == pytest.approx(100 * (1 / 1 + 2 / 4) / 2)


def test_v20_images_without_matplotlib(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('No module named matplotlib')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run("evaluate-v2.0.py", V20, PREDICTIONS, "-n", "probs.json", "-p", "images", probs=PROBABILITIES)
    assert_one_sentence(result, 3, "matplotlib", "pip install matplotlib")
    assert not (tmp_path / "images").exists()


def test_no_arguments_show_the_usage() -> None:
    for script in ("evaluate-v1.1.py", "evaluate-v2.0.py"):
        result = subprocess.run([sys.executable, str(SQUAD / script)], capture_output=True, text=True, check=False)
        assert result.returncode == 2 and result.stderr.startswith("usage: ") and result.stdout == ""
