# SPDX-License-Identifier: Apache-2.0
"""download_model.sh hub:ID with a double of wget: resuming, checksums, missing files, models of other kinds."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from doubles import Run, install, log

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


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def site(root: Path) -> Path:
    """What the hub's double has of the model owner/name."""
    for name, content in HUB_FILES.items():
        (root / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "site" / name).write_text(content)
    install(root / "bin", "wget", HUB_WGET)
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
