# SPDX-License-Identifier: Apache-2.0
"""Every command of the README does what the README says, one after the other, as a reader would type them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ANSWER, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
START, TOUR = README.split("## Tour")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a directory that looks like a clone but takes what the commands write."""
    directory = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in ("engines", "predictions.json", "results") and not path.name.startswith("."):
            (directory / path.name).symlink_to(path)
    return directory


def run(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with this Python as `python`."""
    script = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\nM=models/bert_minilm_l6_qa_squad11_fake_quant\n{command}'
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-euc", script], cwd=place, env=env, capture_output=True, text=True, timeout=300)


def test_every_command_of_the_tour_works(place: Path) -> None:
    said = {}
    for block in blocks("bash", TOUR):
        for command in block.strip().splitlines():
            if command.startswith("cmake "):
                continue  # compiled, as far as the machine can, by test_cuda_module.py
            done = run(command, place)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            assert "Traceback" not in done.stderr
            said[command] = done.stdout
    answers = [out for command, out in said.items() if "Who published BERT?" in command]
    assert "Answer: 'Google'" in answers[0]
    assert any('"answer": "2018"' in out for out in said.values())
    assert any("&&&& PASSED" in out for out in said.values())
    assert any('"lengths": "squad"' in out for out in said.values())
    assert any("Running 50 iterations with Batch Size: 8" in out for out in said.values())


def test_three_lines_of_python(place: Path) -> None:
    (snippet,) = blocks("python", TOUR)
    done = run(f"python -c {shlex.quote(snippet)}", place)
    assert done.stdout == "Google\n", done.stderr


def test_quickstart_prints_what_the_readme_shows() -> None:
    """In the environment that scripts/test.sh has made; the probability may differ in the last digits from CPU to CPU."""
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("runs in the .venv of scripts/test.sh")
    done = subprocess.run(["bash", "scripts/quickstart.sh"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pattern = re.escape(f"Answer: '{ANSWER}'\nWith probability: ") + r"([\d.]+)"
    shown, printed = re.search(pattern, START), re.search(pattern, done.stdout)
    assert shown, "the README shows another answer"
    assert printed, done.stdout
    assert float(printed[1]) == pytest.approx(float(shown[1]), abs=0.01)
