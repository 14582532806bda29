# SPDX-License-Identifier: Apache-2.0
"""Questions to answers through the scripts and the Python API."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ANSWER, MODEL, PASSAGE, QUESTION, ROOT, shell
from helpers import QuestionAnswerer, answer, engine_text
from helpers.data_processing import Example, WindowOptions, read_squad
from helpers.engine_file import read_info
from helpers.errors import EngineMismatch
from helpers.squad_metrics import evaluate_v11
from helpers.tokenization import FullTokenizer


@pytest.mark.parametrize("engine", ["fp32", "fp16", "int8", "packed"])
def test_the_demos_question(script, engines, engine: str) -> None:
    ended = script(
        "inference_varseqlen" if engine == "packed" else "inference", "-e", engines[engine], "-p", PASSAGE, "-q", QUESTION
    )
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert lines[1] == f"Passage: {PASSAGE}"
    assert lines[3] == f"Question: {QUESTION}"
    assert lines[5] == lines[7] == "-" * 24
    assert lines[6].startswith("Running inference in ")
    assert lines[6].endswith(" Sentences/Sec")
    assert lines[8] == f"Answer: '{ANSWER}'"
    assert lines[9].startswith("With probability: ")
    assert 15 < float(lines[9].split()[-1]) < 40


def test_text_from_files_and_vocabulary_of_the_model(script, engines, tmp_path) -> None:
    (tmp_path / "p.txt").write_text(PASSAGE, encoding="utf-8-sig")
    (tmp_path / "q.txt").write_text(QUESTION + "\n")
    files = "-pf", tmp_path / "p.txt", "-qf", tmp_path / "q.txt"
    ended = script("inference", "-e", engines["fp32"], *files, "-v", MODEL / "vocab.txt", "--json")
    result = json.loads(ended.out)
    assert result["answer"] == ANSWER == PASSAGE[result["start"] : result["end"]]
    assert len(result["n_best"]) == 20
    assert sum(each["score"] for each in result["n_best"]) == pytest.approx(1)


def test_a_vocabulary_is_the_engines_by_its_tokens_however_its_lines_end(engines, tmp_path) -> None:
    info = read_info(engines["fp32"])
    text = (MODEL / "vocab.txt").read_text()
    for number, written in enumerate((text.rstrip("\n"), text + "\n \n", text.replace("\n", "\r\n"), text.replace("\n", "\t\n"))):
        file = tmp_path / f"{number}.txt"
        file.write_bytes(written.encode())
        for carried in (info, replace(info, vocab=written)):
            for given in (file, MODEL / "vocab.txt"):
                assert engine_text.engine_tokenizer(engines["fp32"], carried, given, None).ids["[SEP]"] == 102
    (tmp_path / "0.txt").write_text(text.replace("\nthe\n", "\n\nthe\n"))
    with pytest.raises(EngineMismatch, match=r"30523 tokens, digest \w+\) is not the one that .* carries \(30522 tokens"):
        engine_text.engine_tokenizer(engines["fp32"], info, tmp_path / "0.txt", None)


def test_the_metadata_is_read_once(script, engines, monkeypatch) -> None:
    read = engine_text.read_info
    paths = []
    monkeypatch.setattr(engine_text, "read_info", lambda path: paths.append(path) or read(path))
    assert script("inference", "-e", engines["fp32"], "-p", PASSAGE, "-q", QUESTION).status == 0
    assert paths == [str(engines["fp32"])]


def test_three_lines_of_python(engines) -> None:
    qa = QuestionAnswerer(engines["fp32"])
    answer = qa(QUESTION, PASSAGE)
    assert (answer.answer, answer.start, answer.end) == (ANSWER, 12, 63)


def test_a_conversation_ends_with_quit_or_with_the_input(engines) -> None:
    """In a process of its own: it reads standard input. `Exit` in capitals leaves as well."""
    for farewell in ("Exit\nwhat else?\n", ""):
        ended = shell("inference.py", "-e", engines["fp32"], "-p", PASSAGE, stdin=f"{QUESTION}\n\n{farewell}")
        assert ended.status == 0, ended.err
        assert ended.out.count("Answer: ") == 1
        assert ANSWER in ended.out
    asked = shell("inference.py", "-e", engines["fp32"], stdin=f"{PASSAGE}\n{QUESTION}\nquit\n")
    assert f"'{ANSWER}'" in asked.out
    assert "Paragraph: " in asked.err


def test_a_conversation_outlives_a_question_that_is_too_long(script, engines, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'why ' * 70}\n{QUESTION}\n"))
    ended = script("inference", "-e", engines["fp32"], "-s", 64, "-p", PASSAGE)
    assert ended.sentence.endswith(
        "a question of 64 word pieces leaves no room for the passage in a window of 64; "
        "give a longer -s/--sequence-length or a smaller --max-query-length"
    )
    assert (ended.status, ended.out.count("Answer: "), f"'{ANSWER}'" in ended.out) == (0, 1, True)


def test_one_question_takes_little_time_from_the_shell(engines) -> None:
    """The claim is 1.5 s on an idle machine with a warm disk; the limit here leaves room for a busy one."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert ANSWER in shell("inference.py", "-e", engines["fp32"], "-p", PASSAGE, "-q", QUESTION).out
        times.append(time.perf_counter() - began)
    assert min(times) < 3


def test_a_squad_file_becomes_predictions(script, engines, few, tmp_path) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("predictions", "n_best", "na_prob")}
    arguments = "-o", files["predictions"], "--n-best-file", files["n_best"], "--na-prob-file", files["na_prob"], "-b", 4
    ended = script("inference", "-e", engines["fp32"], "-sq", few, *arguments)
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[0] == f"Predictions are written to {files['predictions']}"
    ids = [example.id for example in read_squad(few)]
    predictions = json.loads(files["predictions"].read_text())
    assert list(predictions) == ids
    assert files["predictions"].read_text() == json.dumps(predictions, indent=4)
    n_best = json.loads(files["n_best"].read_text())
    assert [n_best[question][0]["answer"] for question in ids] == list(predictions.values())
    assert all(0 <= probability <= 1 for probability in json.loads(files["na_prob"].read_text()).values())
    assert evaluate_v11(json.loads(few.read_text()), predictions)["f1"] > 60


def test_padded_packed_and_any_batch_size_give_the_same_answers(script, engines, few, tmp_path) -> None:
    answers = []
    for number, (command, engine, *more) in enumerate(
        [("inference", "fp32"), ("inference", "fp32", "-b", 1), ("inference", "fp32", "-b", 33), ("inference_varseqlen", "packed")]
    ):
        path = tmp_path / f"{number}.json"
        assert script(command, "-e", engines[engine], "-sq", few, "-o", path, *more).status == 0
        answers.append(path.read_text())
    assert len(set(answers)) == 1


def test_both_runtimes_give_the_same_answers(script, engines, few, tmp_path) -> None:
    for runtime in ("openvino", "onnxruntime"):
        ended = script("inference", "-e", engines["fp32"], "-sq", few, "-o", tmp_path / runtime, "--cpu-runtime", runtime)
        assert ended.status == 0, ended.err
    assert (tmp_path / "openvino").read_text() == (tmp_path / "onnxruntime").read_text()


def test_squad_v2_may_answer_nothing(script, engines) -> None:
    question = "-q", "Who won the football match?", "-p", PASSAGE
    forced = json.loads(
        script("inference", "-e", engines["fp32"], *question, "--json", "--squad-v2", "--null-threshold", "-1000").out
    )
    assert (forced["answer"], forced["start"], forced["end"]) == ("", 0, 0)
    kept = json.loads(script("inference", "-e", engines["fp32"], *question, "--json", "--squad-v2", "--null-threshold", "1000").out)
    assert kept["answer"]
    assert kept["null_odds"] == pytest.approx(forced["null_odds"])


def test_a_passage_is_tokenized_once_for_all_its_questions(engines, monkeypatch) -> None:
    passage = " ".join(f"Sentence number {n} speaks of town {n * 7}." for n in range(1400))  # about 10,000 words
    tokenized: list[str] = []
    encode = FullTokenizer.encode

    def counted(self: FullTokenizer, texts: list[str]) -> list:
        tokenized.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(FullTokenizer, "encode", counted)
    qa = QuestionAnswerer(engines["int8"], window=WindowOptions(384, doc_stride=300))
    monkeypatch.setattr(qa.session, "run", lambda batch: np.zeros((batch.tokens, 2), np.float32))
    examples = [Example(str(n), f"What is sentence {n} about?", passage) for n in range(100)]
    assert len(list(qa.answer_all(examples))) == 100
    assert tokenized.count(passage) == 1
    assert len(tokenized) == 101


def test_memory_stays_flat_over_many_questions(engines, monkeypatch) -> None:
    """20 times the questions must not hold 20 times the windows: counted by what is alive, not by a noisy process size."""
    import gc

    from helpers.data_processing import Window

    qa = QuestionAnswerer(engines["int8"])
    monkeypatch.setattr(qa.session, "run", lambda batch: np.zeros((batch.tokens, 2), np.float32))
    most = 0
    examples = (Example(str(n), "What is it?", f"{PASSAGE} number {n}") for n in range(8000))
    for number, _ in enumerate(qa.answer_all(examples)):
        if number % 1000 == 999:
            most = max(most, sum(isinstance(thing, Window) for thing in gc.get_objects()))
    assert 0 < most <= 3 * 1024 + 64


@pytest.mark.parametrize(
    ("question", "passage"),
    [
        (QUESTION, "word " * 3000),
        (QUESTION, "😀" * 50 + " emoji 👩‍👩‍👧 passage"),
        ("מה זה?", "שלום עולם \u202eטקסט מימין לשמאל"),
        (QUESTION, "lone \ud800 surrogate \udfff here"),
        (QUESTION, "NUL \x00 in\x00side"),
        (QUESTION, "\u200b\u200b"),
        ("?" * 500, "A passage."),
        ("\x00", "A passage."),
    ],
    ids=["long", "emoji", "right-to-left", "surrogates", "nul", "nothing left", "long question", "empty question"],
)
def test_odd_texts_get_an_answer_from_the_text(engines, question: str, passage: str) -> None:
    qa = QuestionAnswerer(engines["fp32"], window=WindowOptions(sequence_length=96, doc_stride=48))
    answer = qa(question, passage)
    assert answer.answer == passage[answer.start : answer.end]
    assert np.isfinite(answer.score)


def test_a_passage_of_a_hundred_thousand_words(engines, monkeypatch) -> None:
    """The text side of it: windows of 384 at stride 128, more than a thousand of them, and the mark found in the last."""
    qa = QuestionAnswerer(engines["int8"], window=WindowOptions(384))
    passage = "quick brown fox jumps over " * 20_000 + "treasure"
    treasure = qa.tokenizer.convert_tokens_to_ids(["treasure"])[0]
    monkeypatch.setattr(qa.session, "run", lambda batch: np.repeat((batch.ids == treasure).astype(np.float32)[:, None] * 9, 2, 1))
    began = time.perf_counter()
    assert qa("Where is it?", passage).answer == "treasure"
    assert qa.statistics.windows > 700
    assert time.perf_counter() - began < 20


def test_printing_text_that_the_terminal_cannot_show(engines) -> None:
    ended = shell("inference.py", "-e", engines["fp32"], "-p", "naïve 😀 text", "-q", "what?", PYTHONIOENCODING="ascii")
    assert ended.status == 0, ended.err
    assert "na\\xefve" in ended.out


@pytest.mark.parametrize(
    ("words", "closed", "answers"),
    [
        ("-p {passage}", "<&-", 0),
        ("-p {passage}", ">&-", 0),
        ("-p {passage}", "2>&-", 1),
        ("-sq {few} -o {out}", "<&- >&- 2>&-", 0),
        ("-h", ">&-", 0),
    ],
)
def test_streams_that_the_caller_has_closed(engines, few, tmp_path, words: str, closed: str, answers: int) -> None:
    """As if they led to /dev/null; what is said on one of them never goes to another."""
    out = tmp_path / "p.json"
    filled = words.format(passage=shlex.quote(PASSAGE), few=few, out=out)
    line = f"{sys.executable} inference.py -e {engines['int8']} {filled} {closed}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, input=f"{QUESTION}\n", timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert (done.stdout.count("Answer: "), "Question (to leave" in done.stdout) == (answers, False)
    assert out.exists() == ("-sq" in words)


def test_scripts_start_from_any_directory(engines, tmp_path) -> None:
    ended = shell(
        ROOT / "inference.py", "-e", os.path.relpath(engines["fp32"], tmp_path), "-p", PASSAGE, "-q", QUESTION, cwd=tmp_path
    )
    assert ANSWER in ended.out


def test_progress_counts_every_question_once_and_as_runs_end(engines, few) -> None:
    qa = QuestionAnswerer(engines["int8"], window=WindowOptions(64, doc_stride=32), batch_size=4)
    calls: list[int] = []
    examples = [*read_squad(few), Example("", "Nothing?", "")]
    assert len(list(qa.answer_all(examples, calls.append))) == len(examples) == sum(calls)
    assert len(calls) > 10


def test_an_error_does_not_wait_for_what_has_not_begun(engines, monkeypatch) -> None:
    qa = QuestionAnswerer(engines["int8"])
    runs: list[int] = []

    def run(batch) -> np.ndarray:
        runs.append(1)
        time.sleep(0.01)
        return np.full((batch.tokens, 2), np.nan, np.float32)

    monkeypatch.setattr(qa.session, "run", run)
    with pytest.raises(EngineMismatch, match="not finite"):
        list(qa.answer_all([Example("", QUESTION, PASSAGE)] * 1000))
    assert len(runs) < 50


@pytest.mark.parametrize(("backend", "first", "rate"), [("cuda", 5.0, "100.000"), ("cpu", 0.4, "100.000"), ("cpu", 5.0, "0.200")])
def test_the_time_printed_is_not_that_of_setting_up(
    backend: str, first: float, rate: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU engine's first run may look for its fastest kernels; on a CPU a long run is not repeated."""
    best = SimpleNamespace(answers=[SimpleNamespace(answer="x", score=1.0)])
    runs = iter([(best, 1, first), (best, 1, 0.01)])
    monkeypatch.setattr(answer, "_timed", lambda *_: next(runs))
    answer.answer_one(SimpleNamespace(info=SimpleNamespace(backend=backend)), PASSAGE, QUESTION, False, False)
    assert f"Running inference in {rate} Sentences/Sec" in capsys.readouterr().out
