# SPDX-License-Identifier: Apache-2.0
"""The download scripts in a repository of their own, with doubles of ngc, wget and curl as the only clients on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TOOLS = ["basename", "bash", "cat", "dirname", "find", "grep", "head", "mkdir", "mktemp", "mv", "rm", "sed", "sha256sum", "tail"]
TOOLS += ["touch", "tr"]
Run = Callable[..., subprocess.CompletedProcess[str]]

# ngc registry model download-version nvidia/NAME:VERSION --dest DIR
NGC = """#!/usr/bin/env bash
echo "$*" >>"$LOG"
name=${4#nvidia/}
directory=$6/${name%:*}_v${name#*:}
mkdir -p "$directory"
[ "${NGC_DOES:-}" = nothing ] && exit 0
echo weights >"$directory/model.ckpt.data"
[ "${NGC_DOES:-}" = break ] && exit 1
echo "Download complete"
"""

# wget -c -O FILE URL sends CONTENT, or what FILE still lacks of it; status 8 for a path with "absent"
WGET = """#!/usr/bin/env bash
echo "$*" >>"$LOG"
[ -n "${WGET_STATUS:-}" ] && { printf '%s' "${WGET_SENDS:-}" >>"$3"; exit "$WGET_STATUS"; }
have=$(cat "$3" 2>/dev/null || true)
printf '%s' "${CONTENT#"$have"}" >>"$3"
"""
CURL = """#!/usr/bin/env bash
echo "$*" >>"$LOG"
printf '%s' "$CONTENT" >"$6"
"""
CONTENT = '{"data": [], "version": "1.1"}'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the two scripts, and a bin/ with the tools that they may use but no client."""
    root = tmp_path / "a repository"
    (root / "bin").mkdir(parents=True)
    shutil.copytree(SCRIPTS, root / "scripts")
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path is not None
        (root / "bin" / tool).symlink_to(path)
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """Return a function that runs a script from another directory, in an environment that holds only what is given."""

    def run_script(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"PATH": str(root / "bin"), "LOG": str(root / "log"), "CONTENT": CONTENT, **environment}
        command = [str(root / "bin" / "bash"), str(root / "scripts" / script), *words]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    return run_script


def install(root: Path, name: str, text: str) -> None:
    (root / "bin" / name).write_text(text)
    os.chmod(root / "bin" / name, 0o755)


def log(root: Path) -> list[str]:
    return (root / "log").read_text().splitlines() if (root / "log").exists() else []


def names(directory: Path) -> list[str]:
    """Return what is in a directory, hidden files too."""
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


# download_model.sh

TF, PYT, MEGATRON = "bert_tf_ckpt_", "bert_pyt_onnx_large_qa_squad11_amp_fake_quant", "bert_pyt_statedict_megatron_"


@pytest.mark.parametrize(
    ("words", "name", "version"),
    [
        ("", f"{TF}large_qa_squad2_amp_128", "19.03.1"),
        ("384 base", f"{TF}base_qa_squad2_amp_384", "19.03.1"),
        ("v1_1 large 384 tf", f"{TF}large_qa_squad11_amp_384", "19.03.1"),
        ("base v1_1 128 pyt 384 v2 tf large", f"{TF}large_qa_squad2_amp_384", "19.03.1"),
        ("pyt v1_1", PYT, "1"),
        ("v1_1 384 large pyt", PYT, "1"),
        ("pyt megatron-large", f"{MEGATRON}dense_fp16", "21.03.0"),
        ("sparse megatron-large pyt", f"{MEGATRON}sparse_fp16", "21.03.0"),
        ("int8-qat pyt megatron-large", f"{MEGATRON}dense_int8qat", "21.03.0"),
        ("pyt megatron-large int8-qat sparse v1_1 384", f"{MEGATRON}sparse_int8qat", "21.03.0"),
    ],
)
def test_words_choose_the_checkpoint(root: Path, run: Run, words: str, name: str, version: str) -> None:
    install(root, "ngc", NGC)
    result = run("download_model.sh", *words.split())
    directory = root / "models" / "fine-tuned" / f"{name}_v{version}"
    assert (result.returncode, result.stdout) == (0, f"{directory}\n"), result.stderr
    assert log(root)[0].startswith(f"registry model download-version nvidia/{name}:{version} --dest ")
    assert names(directory.parent) == [directory.name]
    assert names(directory) == ["model.ckpt.data"]


def test_checkpoint_that_is_there_is_left_alone(root: Path, run: Run) -> None:
    install(root, "ngc", NGC)
    first = run("download_model.sh")
    (root / "bin" / "ngc").unlink()
    again = run("download_model.sh")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "already there" in again.stderr and len(log(root)) == 1


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("large fp61", "unknown word 'fp61'"),
        ("tf megatron-large", "pyt"),
        ("pyt", "v1_1"),
        ("pyt base v1_1", "pyt large v1_1"),
        ("large sparse", "megatron-large"),
        ("pyt v1_1 int8-qat", "megatron-large"),
    ],
)
def test_no_such_checkpoint(root: Path, run: Run, words: str, advice: str) -> None:
    install(root, "ngc", NGC)
    result = run("download_model.sh", *words.split())
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert advice in result.stderr
    assert log(root) == [] and not (root / "models").exists()


def test_without_the_ngc_client(root: Path, run: Run) -> None:
    result = run("download_model.sh")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert "https://org.ngc.nvidia.com/setup/installers/cli" in result.stderr
    assert not (root / "models").exists()


@pytest.mark.parametrize("failure", ["break", "nothing"])
def test_broken_checkpoint_download_leaves_nothing(root: Path, run: Run, failure: str) -> None:
    install(root, "ngc", NGC)
    result = run("download_model.sh", NGC_DOES=failure)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{TF}large_qa_squad2_amp_128:19.03.1" in result.stderr
    assert names(root / "models" / "fine-tuned") == []
    assert run("download_model.sh").returncode == 0


# download_squad.sh


@pytest.mark.parametrize(
    ("words", "version"),
    [([], "v1.1"), (["v1_1"], "v1.1"), (["v2_0"], "v2.0"), (["v2_0", "v1_1"], "v1.1"), (["v1_1", "v2_0"], "v2.0")],
)
def test_squad_version(root: Path, run: Run, words: list[str], version: str) -> None:
    install(root, "wget", WGET)
    result = run("download_squad.sh", *words)
    files = [f"train-{version}.json", f"dev-{version}.json"]
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(root / "squad" / name) for name in files]
    assert [line.split("SQuAD-explorer/dataset/")[1] for line in log(root)] == files
    assert names(root / "squad") == sorted(files)
    assert all((root / "squad" / name).read_text() == CONTENT for name in files)


def test_repeated_squad_download_makes_no_copies(root: Path, run: Run) -> None:
    install(root, "wget", WGET)
    first, again = run("download_squad.sh"), run("download_squad.sh")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert names(root / "squad") == ["dev-v1.1.json", "train-v1.1.json"] and len(log(root)) == 2


def test_curl_where_wget_is_missing(root: Path, run: Run) -> None:
    install(root, "curl", CURL)
    assert run("download_squad.sh").returncode == 0
    assert (root / "squad" / "dev-v1.1.json").read_text() == CONTENT


def test_interrupted_squad_download_goes_on_where_it_stopped(root: Path, run: Run) -> None:
    install(root, "wget", WGET)
    result = run("download_squad.sh", WGET_STATUS="4", WGET_SENDS=CONTENT[:9])
    assert (result.returncode, result.stdout) == (1, "")
    assert "could not be downloaded" in result.stderr
    assert names(root / "squad") == [".train-v1.1.json.part"]
    assert run("download_squad.sh", WGET_STATUS="4", WGET_SENDS=CONTENT[9:12]).returncode == 1
    assert (root / "squad" / ".train-v1.1.json.part").read_text() == CONTENT[:12]
    assert run("download_squad.sh").returncode == 0
    assert names(root / "squad") == ["dev-v1.1.json", "train-v1.1.json"]
    assert json.loads((root / "squad" / "train-v1.1.json").read_text()) == json.loads(CONTENT)


@pytest.mark.parametrize("failure", [{"WGET_STATUS": "8"}, {"CONTENT": "<html>log in</html>"}, {"CONTENT": '{"data": [{"tit'}])
def test_failed_squad_download_leaves_nothing(root: Path, run: Run, failure: dict[str, str]) -> None:
    install(root, "wget", WGET)
    result = run("download_squad.sh", **failure)
    assert (result.returncode, result.stdout) == (1, "")
    assert "train-v1.1.json" in result.stderr
    assert names(root / "squad") == []


def test_refused_continuation_begins_again(root: Path, run: Run) -> None:
    install(root, "wget", WGET.replace('[ -n "${WGET_STATUS:-}" ]', '[ -s "$3" ]').replace("$WGET_STATUS", "8"))
    (root / "squad").mkdir()
    (root / "squad" / ".train-v1.1.json.part").write_text("something stale")
    assert run("download_squad.sh").returncode == 0
    assert (root / "squad" / "train-v1.1.json").read_text() == CONTENT


@pytest.mark.parametrize(("words", "status"), [(["v3"], 2), ([], 3)])
def test_squad_wrong_word_and_missing_client(root: Path, run: Run, words: list[str], status: int) -> None:
    result = run("download_squad.sh", *words)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert ("v1_1" if words else "apt-get install") in result.stderr


# both


@pytest.mark.parametrize("script", ["download_model.sh", "download_squad.sh"])
@pytest.mark.parametrize("words", [["-h"], ["v1_1", "--help"]])
def test_help(root: Path, run: Run, script: str, words: list[str]) -> None:
    result = run(script, *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: bash scripts/{script} ")
    assert names(root) == ["bin", "scripts"]
