# SPDX-License-Identifier: Apache-2.0
"""The wheel: built, installed into an environment that holds what it declares and nothing else, and used from another directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from conftest import ANSWER, MODEL, ONNX, PASSAGE, QUESTION, ROOT
from helpers.options import COMMANDS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built in a copy: setuptools leaves its traces beside the sources."""
    pytest.importorskip("setuptools", minversion="70.1")  # earlier ones need the wheel package to build one
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "helpers", source / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", made, source)
    (path,) = made.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the programs of an environment with the wheel; its dependencies are links to those of this one."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=False, symlinks=True)
    programs = root / "bin"
    _pip("--python", programs / "python", "install", "--no-deps", "--no-index", wheel)
    (site,) = root.glob("lib/python*/site-packages")
    (declared,) = metadata.distributions(name="demobert", path=[str(site)])
    for distribution in _required(declared.requires or [], "cpu"):
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(distribution.locate_file(name))))
    return programs


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def _required(requirements: list[str], extra: str) -> dict[metadata.Distribution, None]:
    """Return the distributions that requirements name, and those that these require."""
    requirement = pytest.importorskip("packaging.requirements").Requirement
    found: dict[str, metadata.Distribution] = {}
    waiting = [(text, extra) for text in requirements]
    while waiting:
        text, extra = waiting.pop()
        wanted = requirement(text)
        if (wanted.marker and not wanted.marker.evaluate({"extra": extra})) or wanted.name in found:
            continue
        distribution = found[wanted.name] = metadata.distribution(wanted.name)
        for each in ("", *wanted.extras):
            waiting += [(text, each) for text in distribution.requires or []]
    return dict.fromkeys(found.values())


@pytest.fixture
def command(installed: Path, tmp_path: Path):
    """Return a function that runs a program of that environment in an empty directory."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        settings = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        line = [str(installed / name), *map(str, arguments)]
        return subprocess.run(line, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300)

    return run


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {path.relative_to(ROOT) for path in (ROOT / "helpers").rglob("*") if path.is_file()}
    # What tools leave beside the sources, __pycache__ and .ruff_cache for two, stays out.
    expected = {str(path) for path in sources if not any(part.startswith((".", "__pycache__")) for part in path.parts)}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {Path(name).name for name in names} >= {"LICENSE", "NOTICE", "entry_points.txt"}
    data = zipfile.ZipFile(wheel).read("helpers/dev-sample-1000.json")
    assert data == (ROOT / "squad" / "dev-sample-1000.json").read_bytes()


def test_every_command_explains_itself_under_its_own_name(command, installed: Path) -> None:
    names = {f"demobert-{name.replace('_', '-')}" for name in COMMANDS}
    assert {path.name for path in installed.glob("demobert*")} == names
    for name in names:
        explained = command(name, "-h")
        assert explained.returncode == 0, explained.stderr
        assert explained.stdout.startswith(f"usage: {name} ")
    wrong = command("demobert-perf", "--engin", "x", "--itterations", 3)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "demobert-perf: error: unknown option --itterations; did you mean --iterations?\n",
    )


def test_build_ask_and_measure_outside_the_repository(command) -> None:
    built = command("demobert-builder", "-x", ONNX, "-c", MODEL, "-s", 128, "--backend", "cpu", "-o", "a.engine")
    assert built.returncode == 0, built.stderr
    asked = command("demobert-inference", "-e", "a.engine", "-p", PASSAGE, "-q", QUESTION, "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["answer"] == ANSWER
    measured = command("demobert-perf", "-e", "a.engine", "-i", 2, "-w", 1, "--json")
    assert measured.returncode == 0, measured.stderr
    code = f"from helpers import QuestionAnswerer; print(QuestionAnswerer('a.engine')({QUESTION!r}, {PASSAGE!r}).answer)"
    assert command("python", "-c", code).stdout == ANSWER + "\n"
    missing = command("demobert-inference", "-e", "b.engine", "-p", PASSAGE, "-q", QUESTION)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: the engine b.engine does not exist")


def test_calibration_has_its_text_with_it(command) -> None:
    source = "-x", ONNX, "-c", MODEL, "-s", 128, "--backend", "cpu"
    built = command("demobert-builder-varseqlen", *source, "--int8", "--calibrate", "-n", 2, "-o", "a.engine")
    assert built.returncode == 0, built.stderr
    assert "measured on 2 questions of" in built.stderr
