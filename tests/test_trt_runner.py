# SPDX-License-Identifier: Apache-2.0
"""The C++ runner for TensorRT plans, compiled over small strict fakes of TensorRT and CUDA (tests/trt/cpp) and run on the CPU.

That its calls exist in the real headers is another matter: docs/tensorrt.md says how it was compiled against them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAKES, SOURCES = ROOT / "tests" / "trt" / "cpp", ROOT / "infer_c"
REST = ("trt_plan", "engine_file", "json")
SANITIZERS = ["-g", "-fsanitize=address,undefined"]

MISTAKES = {
    "the logits have no address": (
        'if (!context.setTensorAddress(plan_.output().c_str(), logits_.data())) fail("TensorRT refused the address',
        'if (false) fail("TensorRT refused the address',
    ),
    "rows without a sequence are empty": ("third[row] = 1;", ""),
    "a graph is captured before a first run": ("if (!slot.context->enqueueV3(stream_)) fail", "if (false) fail"),
    "starts and ends of packed logits are interleaved": (
        "logits[2 * i + 1] = from[tokens + i];",
        "logits[2 * i + 1] = from[2 * i + 1];",
    ),
    "rows of padded logits are taken as packed": ("from + 2 * static_cast<size_t>(i) * shape.seqlen", "from + 2 * first"),
}


def compiled(directory: Path, flags: list[str], *sources: Path, output: str) -> Path:
    compiler = shutil.which("c++")
    if compiler is None:
        if os.environ.get("CI"):
            raise FileNotFoundError("no C++ compiler (c++)")
        pytest.skip("no C++ compiler (c++)")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-DBERT_WITH_TENSORRT", f"-I{FAKES}", f"-I{SOURCES}", *flags]
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(directory / output)], check=True)
    return directory / output


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Everything but the runner, compiled once."""
    directory = tmp_path_factory.mktemp("objects")
    sources = [FAKES / "check_runner.cpp", *(SOURCES / f"{name}.cpp" for name in REST)]
    return [compiled(directory, ["-c"], source, output=f"{source.stem}.o") for source in sources]


def run(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program)], cwd=program.parent, capture_output=True, text=True)


def test_runner(tmp_path: Path) -> None:
    sources = [FAKES / "check_runner.cpp", *(SOURCES / f"{name}.cpp" for name in ("trt_runner", *REST))]
    done = run(compiled(tmp_path, SANITIZERS, *sources, output="check_runner"))
    assert (done.returncode, done.stdout) == (0, "all held\n"), done.stdout + done.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(mistake: str, tmp_path: Path, rest: list[Path]) -> None:
    source, (right, wrong) = (SOURCES / "trt_runner.cpp").read_text(), MISTAKES[mistake]
    assert source.count(right) == 1
    runner = tmp_path / "trt_runner.cpp"
    runner.write_text(source.replace(right, wrong))
    done = run(compiled(tmp_path, ["-Wno-unused-parameter"], runner, *rest, output="check_runner"))
    assert done.returncode != 0, "the mistake was not noticed"
    print(mistake, "->", (done.stdout + done.stderr).strip().splitlines()[0])
