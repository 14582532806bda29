# SPDX-License-Identifier: Apache-2.0
"""The shell scripts and the container: help, mistakes, linters, and what docker is told, with doubles of docker and the GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from doubles import DOCKER, NVIDIA_SMI, Run, install, log, variables_of

SCRIPTS = ["build.sh", "launch.sh", "inference_benchmark.sh", "inference_benchmark_megatron.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_unknown_words(run: Run, root: Path, script: str) -> None:
    before = sorted(root.iterdir())
    helped = run(script, "-h")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert script in helped.stdout and "Exit status:" in helped.stdout
    for words in (["--unknown"], ["stray"]):
        wrong = run(script, *words)
        assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1), wrong.stderr
        assert words[0] in wrong.stderr
    assert sorted(root.iterdir()) == before


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "test_gpu.sh"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_installs_and_compiles_nothing(root: Path, script: str, flag: str) -> None:
    for name in ("python3", "cmake"):
        install(root / "bin", name, '#!/usr/bin/env bash\necho "$0" >>"$LOG"\n')
    before = sorted(root.iterdir())
    variables = {**variables_of(root), "PYTHON": "python3"}
    helped = subprocess.run(["bash", script, flag], cwd=root / "scripts", env=variables, capture_output=True, text=True)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "PYTHON names another interpreter than python3" in helped.stdout
    assert "#" not in helped.stdout
    assert (log(root), sorted(root.iterdir())) == ([], before)


def test_scripts_are_executable_and_clean() -> None:
    scripts = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]
    for script in scripts:
        assert "SPDX-License-Identifier: Apache-2.0" in "\n".join(script.read_text().splitlines()[:2]), script
        if script.read_text().startswith("#!"):
            assert os.access(script, os.X_OK), script
    done = lint("shellcheck", "-x", *scripts)
    assert done.returncode == 0, done.stdout


def lint(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a linter of PATH or of this Python's environment; skip the test where it is in neither."""
    checker = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if not checker:
        pytest.skip(f"{program} is not installed")
    return subprocess.run([checker, *map(str, words)], cwd=ROOT, capture_output=True, text=True)


# build.sh and launch.sh


def test_build_gives_docker_the_target_and_the_callers_ids(run: Run, root: Path) -> None:
    install(root / "bin", "docker", DOCKER)
    done = run("build.sh", "--target", "gpu", "--tag", "mine", "--tensorrt", "25.08", "--with", "tensorflow-cpu", "--jupyter")
    assert done.returncode == 0, done.stderr
    user, group = (os.getuid(), os.getgid()) if os.getuid() else (1000, 1000)
    words = ["build", "--file", f"{root}/Dockerfile", "--target", "gpu", "--tag", "mine", "--build-arg", f"UID={user}"]
    words += ["--build-arg", f"GID={group}", "--build-arg", "TENSORRT=25.08"]
    words += ["--build-arg", "PACKAGES=tensorflow-cpu jupyterlab matplotlib", str(root)]
    assert log(root) == words
    assert done.stdout.startswith("+ docker build --file ")


@pytest.mark.parametrize("gpu", [True, False])
def test_targets_and_gpus_follow_the_machine(run: Run, root: Path, gpu: bool) -> None:
    if gpu:
        install(root / "bin", "nvidia-smi", NVIDIA_SMI)
    build, launch = run("build.sh", "--dry-run"), run("launch.sh", "--dry-run")
    assert (build.returncode, launch.returncode) == (0, 0)
    assert f"--target {'gpu' if gpu else 'cpu'} " in build.stdout
    assert ("--gpus all" in launch.stdout) is gpu
    assert log(root) == []


def test_launch_mounts_the_models_and_runs_the_command(run: Run, root: Path) -> None:
    install(root / "bin", "docker", DOCKER)
    done = run("launch.sh", "--gpus", "2", "--", "python", "perf.py", "-e", "a b", DOCKER_STATUS="7")
    assert done.returncode == 7
    words = log(root)
    assert words[words.index("--gpus") + 1] == "2"
    for name in ("models", "engines", "squad", "results"):
        assert f"{root}/{name}:/workspace/demobert/{name}" in words
        assert (root / name).is_dir()
    assert "XDG_CACHE_HOME=/workspace/demobert/engines/.cache" in words  # outlasts the container
    assert words[words.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert words[-5:] == ["demobert", "python", "perf.py", "-e", "a b"]
    assert "--tty" not in words and "--publish" not in words


def test_launch_publishes_jupyter_on_this_machine_only(run: Run, root: Path) -> None:
    install(root / "bin", "docker", DOCKER)
    assert run("launch.sh", "--jupyter", "9000", "--gpus", "none").returncode == 0
    words = log(root)
    assert words[words.index("--publish") + 1] == "127.0.0.1:9000:8888"
    assert words[-1].startswith("exec jupyter lab")
    assert "--gpus" not in words


@pytest.mark.parametrize(
    ("script", "words", "status", "sentence"),
    [
        ("build.sh", ["--target", "tpu"], 2, "there is no target 'tpu'; give cpu or gpu"),
        ("build.sh", ["--tag"], 2, "--tag needs a value"),
        ("build.sh", [], 3, "docker is not installed"),
        ("launch.sh", ["--gpus", "some"], 2, "--gpus some is neither all, none nor a number"),
        ("launch.sh", ["--jupyter", "99999"], 2, "--jupyter 99999 is no port"),
        ("launch.sh", ["--jupyter", "1", "--", "ls"], 2, "leave out the command behind --"),
        ("launch.sh", [], 3, "docker is not installed"),
    ],
)
def test_container_mistakes(run: Run, root: Path, script: str, words: list[str], status: int, sentence: str) -> None:
    for name in ("bash", "dirname", "id", "mkdir", "cat"):
        (root / "bin" / name).symlink_to(str(shutil.which(name)))
    done = run(script, *words, PATH=str(root / "bin"))
    assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
    assert sentence in done.stderr


def test_the_dockerfile_is_clean() -> None:
    done = lint("hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_the_images_have_what_the_scripts_expect() -> None:
    stages = (ROOT / "Dockerfile").read_text()
    for stage in ("cpu", "gpu"):
        text = stages.split(f"AS {stage}\n")[1].split("\nFROM ")[0]
        assert "WORKDIR /workspace/demobert" in text
        assert "USER ${UID}:${GID}" in text
        for argument in ("UID", "GID", "EXTRAS", "PACKAGES"):
            assert f"ARG {argument}" in text
