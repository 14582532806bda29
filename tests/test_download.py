# SPDX-License-Identifier: Apache-2.0
"""The download scripts in a repository of their own, with doubles of ngc, wget and curl as the only clients on PATH."""

from __future__ import annotations

import hashlib
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


# download_model.sh hub:ID

HUB_FILES = {
    "resolve/main/config.json": '{"model_type": "bert", "hidden_size": 32}',
    "resolve/main/vocab.txt": "[PAD]\n",
    "resolve/main/tokenizer_config.json": "{}",
    "resolve/main/model.safetensors": "weights",
}
# wget -c -O FILE URL: a file of $SITE; status 8 where there is none, 4 in the middle of one named $BREAK
HUB_WGET = """#!/usr/bin/env bash
echo "$*" >>"$LOG"
file=$SITE/${4#https://huggingface.co/owner/name/}
[ -f "$file" ] || exit 8
have=$(cat "$3" 2>/dev/null || true)
content=$(cat "$file"; echo .); content=${content%.}; content=${content#"$have"}
case "$4" in *"${BREAK:-no such file}") printf '%s' "${content:0:3}" >>"$3"; exit 4 ;; esac
printf '%s' "$content" >>"$3"
"""


@pytest.fixture
def site(root: Path) -> Path:
    """What the hub's double has of the model owner/name."""
    for name, content in HUB_FILES.items():
        (root / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "site" / name).write_text(content)
    install(root, "wget", HUB_WGET)
    return root / "site"


def hub(run: Run, site: Path, word: str = "hub:owner/name", **environment: str) -> subprocess.CompletedProcess[str]:
    return run("download_model.sh", word, SITE=str(site), **environment)


def announce(site: Path, digest: str, name: str = "model.safetensors") -> None:
    (site / "raw" / "main").mkdir(parents=True)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 7\n"
    (site / "raw" / "main" / name).write_text(pointer)


def test_hub_model(root: Path, run: Run, site: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    announce(site, digest)
    result = hub(run, site)
    directory = root / "models" / "fine-tuned" / "owner--name"
    assert (result.returncode, result.stdout) == (0, f"{directory}\n"), result.stderr
    assert names(directory) == sorted(Path(name).name for name in HUB_FILES)
    assert (directory / "model.safetensors").read_text() == "weights"
    assert f"{digest}  model.safetensors" in result.stderr
    assert "builder.py --hf" in result.stderr
    assert names(directory.parent) == ["owner--name"]
    fetched = len(log(root))
    assert hub(run, site).stdout == result.stdout and len(log(root)) == fetched


def test_hub_model_without_safetensors_and_casing(root: Path, run: Run, site: Path) -> None:
    (site / "resolve/main/model.safetensors").rename(site / "resolve/main/pytorch_model.bin")
    (site / "resolve/main/tokenizer_config.json").unlink()
    result = hub(run, site)
    assert result.returncode == 0, result.stderr
    assert names(root / "models/fine-tuned/owner--name") == ["config.json", "pytorch_model.bin", "vocab.txt"]


def test_hub_model_with_its_vocabulary_in_tokenizer_json(root: Path, run: Run, site: Path) -> None:
    (site / "resolve/main/vocab.txt").rename(site / "resolve/main/tokenizer.json")
    assert hub(run, site).returncode == 0
    assert "tokenizer.json" in names(root / "models/fine-tuned/owner--name")


def test_hub_revision_has_its_own_directory(root: Path, run: Run, site: Path) -> None:
    (site / "resolve" / "main").rename(site / "resolve" / "v2")
    result = hub(run, site, "hub:owner/name@v2")
    assert result.stdout == f"{root}/models/fine-tuned/owner--name@v2\n"


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("config.json", "config.json of owner/name (revision main) could not be downloaded; check the name"),
        (
            "vocab.txt",
            "neither vocab.txt nor tokenizer.json of owner/name (revision main) could not be downloaded; without a WordPiece",
        ),
        ("model.safetensors", "neither model.safetensors nor pytorch_model.bin of owner/name"),
    ],
)
def test_hub_model_that_lacks_a_file(root: Path, run: Run, site: Path, missing: str, sentence: str) -> None:
    (site / "resolve/main" / missing).unlink()
    result = hub(run, site)
    assert (result.returncode, result.stdout) == (1, "")
    assert sentence in result.stderr
    assert not (root / "models/fine-tuned/owner--name").exists()


def test_hub_model_of_another_kind_is_refused_before_its_weights_come(root: Path, run: Run, site: Path) -> None:
    (site / "resolve/main/config.json").write_text('{"model_type": "roberta"}')
    result = hub(run, site)
    assert result.returncode == 1
    assert "owner/name is a model of type 'roberta'; builder.py reads BERT models" in result.stderr
    assert not any("model.safetensors" in line for line in log(root))
    assert names(root / "models/fine-tuned") == []


def test_broken_hub_download_goes_on(root: Path, run: Run, site: Path) -> None:
    result = hub(run, site, BREAK="model.safetensors")
    assert (result.returncode, result.stdout) == (1, "")
    assert "check the connection, then run this command again" in result.stderr
    fetched = len(log(root))
    assert hub(run, site).returncode == 0
    assert (root / "models/fine-tuned/owner--name/model.safetensors").read_text() == "weights"
    assert not any("config.json" in line for line in log(root)[fetched:])


def test_damaged_hub_download_is_refused(root: Path, run: Run, site: Path) -> None:
    announce(site, "0" * 64)
    result = hub(run, site)
    assert result.returncode == 1
    assert "model.safetensors of owner/name is damaged: the hub says SHA-256 000" in result.stderr
    assert not (root / "models/fine-tuned/owner--name").exists()


@pytest.mark.parametrize(
    "words", [["hub:"], ["hub:a/b/c"], ["hub:../x"], ["hub:a b"], ["hub:a/b@"], ["hub:a/b@c/d"], ["hub:a/b", "tf"]]
)
def test_wrong_hub_words(root: Path, run: Run, words: list[str]) -> None:
    result = run("download_model.sh", *words)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert not (root / "models").exists()


# both


@pytest.mark.parametrize("script", ["download_model.sh", "download_squad.sh"])
@pytest.mark.parametrize("words", [["-h"], ["v1_1", "--help"]])
def test_help(root: Path, run: Run, script: str, words: list[str]) -> None:
    result = run(script, *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: bash scripts/{script} ")
    assert names(root) == ["bin", "scripts"]
