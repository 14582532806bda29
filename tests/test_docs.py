# SPDX-License-Identifier: Apache-2.0
"""What the pages in docs/ say is true: generated ones are fresh, links lead somewhere, commands and blocks run, messages exist."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from conftest import ANSWER, MODEL, ONNX, ROOT, SAMPLE, assert_close, shell
from doubles import NGC, install, repository, runner
from helpers import backends, errors
from helpers.batching import random_batch
from helpers.engine_file import read_info
from helpers.options import COMMANDS, parse
from helpers.reference import Reference
from helpers.weights import Weights, onnx_model, tf_checkpoint

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
CHECKPOINTS = [f"bert_tf_ckpt_large_qa_squad{name}_v19.03.1" for name in ("2_amp_128", "2_amp_384", "11_amp_384")]
QAT = "bert_pyt_onnx_large_qa_squad11_amp_fake_quant_v1"


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page: what stands behind the fence, and the content."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```([\w ]+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("generator", ["scripts/make_docs.py", "scripts/results_table.py"])
def test_generated_pages_are_fresh(generator: str) -> None:
    ended = shell(generator, "--check")
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve()
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


# troubleshooting.md


def messages() -> list[str]:
    """Return every text of the programs, with … where a value is filled in."""
    found = []
    for path in [*(ROOT / "helpers").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    for path in (ROOT / "scripts").glob("*.sh"):
        text = path.read_text(encoding="utf-8")
        found.append(re.sub(r"\$\{[^}]*\}|\$\w+", "…", text.replace("$missing", "could not be downloaded")))
    return found


def test_messages_of_the_troubleshooting_page_are_those_of_the_programs() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(listed) > 30
    known = messages()
    for message in listed:
        pattern = re.compile(".*?".join(re.escape(part) for part in message.split("…")))
        assert any(pattern.search(each) for each in known), message


# engine-files.md and adding-a-backend.md


def test_blocks_about_engine_files_run_and_print_what_they_say(tmp_path, monkeypatch) -> None:
    for name in ("builder.py", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
    monkeypatch.setenv("M", str(MODEL.relative_to(ROOT)))
    names: dict[str, object] = {}
    run = 0
    for (kind, content), (following, expected) in itertools.pairwise([*blocks("engine-files.md"), ("", "")]):
        if kind == "bash":
            done = subprocess.run(["bash", "-euc", content], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        elif kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(content, "docs/engine-files.md", "exec"), names)
            assert (following, printed.getvalue()) == ("text", expected)
            run += 1
    assert run == 4


def test_the_metadata_table_has_every_key(engines) -> None:
    text = (DOCS / "engine-files.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text.split("## Metadata")[1].split("##")[0], re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    assert sorted(keys) == sorted(json.loads(read_info(engines["fp32"]).to_json()))


def test_the_backend_of_the_page_builds_answers_and_agrees(script, config, weights, tmp_path, monkeypatch) -> None:
    ((kind, content),) = [block for block in blocks("adding-a-backend.md") if block[0] == "python"]
    module = types.ModuleType("helpers.backends.numpy_example")
    exec(compile(content, "docs/adding-a-backend.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(backends.BACKENDS, "numpy", module.__name__)
    monkeypatch.setattr(backends, "choose", lambda name: "numpy")
    engine = tmp_path / "numpy.engine"
    assert script("builder", "-x", ONNX, "-c", MODEL, "-s", 64, "-o", engine).status == 0
    asked = script("inference", "-e", engine, "-p", "BERT was published by Google in 2018.", "-q", "Who published BERT?")
    assert "Answer: 'Google'" in asked.out
    assert script("perf", "-e", engine, "-s", 16, "-i", 1, "-w", 0).status == 0
    batch = random_batch([3, 40], config.vocab_size)
    session = backends.load(engine, read_info(engine), backends.LoadOptions())
    assert_close(session.run(batch), Reference(config, weights)(batch), 1e-5)
    refused = script("builder", "-x", ONNX, "-c", MODEL, "-o", engine, "--int8")
    assert (refused.status, "the numpy backend computes in FP32 only" in refused.sentence) == (2, True)


# coming-from-demobert.md


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A directory as the old commands expect it, the repository's model under every checkpoint's name, and two questions."""
    for name in CHECKPOINTS:
        directory = tmp_path / "models" / "fine-tuned" / name
        directory.mkdir(parents=True)
        for file in ("bert_config.json", "vocab.txt"):
            (directory / file).symlink_to(MODEL / file)
    (tmp_path / "models" / "fine-tuned" / QAT).mkdir()
    (tmp_path / "models" / "fine-tuned" / QAT / "bert_large_v1_1_fake_quant.onnx").symlink_to(ONNX)
    sample = json.loads(SAMPLE.read_text(encoding="utf-8"))
    paragraph = sample["data"][0]["paragraphs"][0]
    paragraph["qas"] = paragraph["qas"][:2]
    (tmp_path / "squad").mkdir()
    dev = {"version": "1.1", "data": [{"title": "", "paragraphs": [paragraph]}]}
    (tmp_path / "squad" / "dev-v1.1.json").write_text(json.dumps(dev))
    (tmp_path / "squad" / "evaluate-v1.1.py").symlink_to(ROOT / "squad" / "evaluate-v1.1.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends, "choose", lambda name: "cpu")

    def without_ranges(config, prefix) -> Weights:
        assert Path(prefix).name == "model.ckpt"
        weights = onnx_model.read(config, ONNX)
        return Weights(weights.tensors, {}, f"TensorFlow checkpoint {prefix}")

    monkeypatch.setattr(tf_checkpoint, "read", without_ranges)
    return tmp_path


def commands(kind: str) -> list[list[str]]:
    lines = "\n".join(content for fence, content in blocks("coming-from-demobert.md") if fence == kind).splitlines()
    return [shlex.split(line) for line in lines if line]


def script_command(words: list[str]) -> str | None:
    """Return the name of our command when the words run one."""
    if words[0] == "python3" and words[1].removesuffix(".py") in COMMANDS:
        return words[1].removesuffix(".py")
    return None


def test_old_commands_work(script, workspace: Path) -> None:
    answers = evaluations = measured = 0
    for words in commands("bash"):
        if command := script_command(words):
            ended = script(command, *words[2:])
            assert ended.status == 0, (words, ended.err)
            if "-q" in words:
                assert f"Answer: '{ANSWER}'" in ended.out, words
                answers += 1
            measured += command.startswith("perf") and "Throughput: " in ended.out
        elif words[:2] == ["python3", "squad/evaluate-v1.1.py"]:
            done = shell(*words[1:], cwd=workspace)
            assert (done.status, done.out[:5]) == (0, "&&&& "), done.err
            assert json.loads(done.out.splitlines()[1])["f1"] > 30
            evaluations += 1
        else:
            assert words[0] in ("bash", "mkdir"), words
    assert (answers, evaluations, measured) == (2, 3, 3)
    caches = list(workspace.glob("*CalibCache*"))
    assert len(caches) == 1


def test_old_commands_for_gpus_are_understood() -> None:
    usage = (ROOT / "infer_c" / "perf.cpp").read_text(encoding="utf-8")
    seen = set()
    for words in commands("bash gpu"):
        seen.add(words[0] if words[0] != "python3" else words[1])
        if command := script_command(words):
            parse(command, words[2:])
        elif words[0] == "build/perf":
            for word in words:
                assert not word.startswith("-") or re.search(rf"{re.escape(word)}[ ,]", usage), word
        else:
            assert words[0] in ("cmake", "bash"), words
    assert seen == {"bash", "cmake", "builder_varseqlen.py", "inference_c.py", "build/perf"}


WGET = '#!/usr/bin/env bash\ncase "$4" in */raw/*) exit 8 ;; esac\nprintf \'%s\' \'{"model_type": "bert"}\' >"$3"\n'


def test_old_scripts_work(tmp_path: Path) -> None:
    root = repository(tmp_path)
    install(root / "bin", "ngc", NGC)
    install(root / "bin", "wget", WGET)
    seen = []
    for words in [words for kind in ("bash", "bash gpu") for words in commands(kind) if words[0] == "bash"]:
        dry = [] if "download" in words[1] else ["--dry-run"]
        done = runner(root)(Path(words[1]).name, *words[2:], *dry)
        assert done.returncode == 0, (words, done.stderr)
        seen.append(words[1].removeprefix("scripts/"))
    assert {"build.sh", "launch.sh", "download_squad.sh", "download_model.sh", "inference_benchmark.sh"} <= set(seen)
    models = {path.name for path in (root / "models" / "fine-tuned").iterdir()}
    assert {QAT, "deepset--bert-base-cased-squad2", "bert_pyt_statedict_megatron_sparse_int8qat_v21.03.0"} <= models


def test_exit_statuses_of_the_page_are_those_of_the_exceptions() -> None:
    text = (DOCS / "options.md").read_text(encoding="utf-8").split("## Exit statuses")[1]
    listed = {int(status) for status in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    family = [errors.BertError, *errors.BertError.__subclasses__()]
    assert {error.status for error in family} | {0, 130, 143} == listed


def test_the_readmes_numbers_of_the_published_table() -> None:
    rows = (DOCS / "results" / "published-latency.csv").read_text().splitlines()[1:]
    counts = [sum(f"TensorRT {version} demo README" in row for row in rows) for version in ("7.2", "10.16")]
    assert counts == [238, 300]
    a30 = {row.split(",")[5] for row in rows if row.startswith("A30,bert-large,384,128,int8")}
    assert a30 and all(330 < float(value) < 340 for value in a30)
    assert np.all([len(row.split(",")) == 9 for row in rows])
