# SPDX-License-Identifier: Apache-2.0
"""benchmark_peers.py with doubles of PyTorch and of the engines: rows, failures, SQuAD in packed batches."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import test_cuda_products
from conftest import ROOT, SAMPLE
from helpers import backends
from helpers.batching import Batch
from helpers.engine_file import read_info

Run = Callable[..., int]
SHAPE = ("--models", "base", "--lengths", "128", "--batch-sizes", "2", "--iterations", "4", "--seconds", "0.1")


class Session:
    """An engine that takes a microsecond a token."""

    def timer(self, batch: Batch) -> Callable[[], float]:
        return lambda: batch.tokens / 1000


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("benchmark_peers")
    monkeypatch.setattr(
        module.torch_peer.PeerProcess, "times", lambda self, model, batch, length, compiled, *limits: [1.5 if compiled else 2.0]
    )
    monkeypatch.setattr(module.torch_peer.PeerProcess, "versions", lambda self: "PyTorch 2.x")
    monkeypatch.setattr(module, "build_engine", lambda model, precision, directory: directory / precision)
    monkeypatch.setattr(module, "read_info", lambda path: path.name)
    monkeypatch.setattr(backends, "load", lambda path, info, options: Session())
    return module


@pytest.fixture
def run(peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def script(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark_peers.py", "--csv", *map(str, (tmp_path / "a.csv", *words))])
        return peers.main()

    return script


def rows(tmp_path: Path) -> list[tuple[str, ...]]:
    with (tmp_path / "a.csv").open(newline="") as file:
        return [tuple(row[name] for name in ("engine", "precision", "avg_ms")) for row in csv.DictReader(file)]


def test_peers_in_fp16_and_ours_in_each_precision(run: Run, tmp_path: Path, capsys) -> None:
    assert run(*SHAPE, "--precisions", "fp16", "fp8") == 0
    ours = [("ours", precision, "0.2560") for precision in ("fp16", "fp8")]
    assert rows(tmp_path) == [("eager", "fp16", "2.0000"), ("compile", "fp16", "1.5000"), *ours]
    out = capsys.readouterr().out
    assert "base  128   2 fp8  ours      0.2560 ms, median   0.2560,   7812 sequences/s" in out
    assert "base  128   2 took 0." in out


def test_rows_are_kept_or_replaced(run: Run, peers: ModuleType, tmp_path: Path, monkeypatch) -> None:
    run(*SHAPE)
    monkeypatch.setattr(peers.torch_peer.PeerProcess, "times", lambda *shape: [1.0])
    run(*SHAPE, "--engines", "compile")
    assert [row[2] for row in rows(tmp_path) if row[0] == "compile"] == ["1.5000", "1.0000"]
    run(*SHAPE, "--engines", "compile", "--replace")
    assert [(row[0], row[2]) for row in rows(tmp_path)] == [("eager", "2.0000"), ("ours", "0.2560"), ("compile", "1.0000")]


def test_one_failure_leaves_its_row_out(run: Run, peers: ModuleType, tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(model: str, precision: str, directory: Path) -> Path:
        if precision == "int8":
            raise RuntimeError("broken on purpose\nwith more lines")
        return directory / precision

    monkeypatch.setattr(peers, "build_engine", broken)
    assert run(*SHAPE, "--engines", "ours", "--precisions", "int8", "fp16") == 1
    assert rows(tmp_path) == [("ours", "fp16", "0.2560")]
    assert capsys.readouterr().err.splitlines()[-1] == "not measured: base 128 2 int8 ours: broken on purpose"


def test_long_runs_are_fewer(peers: ModuleType) -> None:
    asked: list[float] = []

    def once() -> float:
        asked.append(1.0)
        return 1.0

    assert len(peers.torch_peer.runs(once, 5, 60)) == 5
    assert len(peers.torch_peer.measure(once, 5, 2, 0)) == 3 and len(asked) == 5 + 2 + 3
    peers.torch_peer.measure(once, 5, 2, 0.1)
    assert len(asked) > 100, "the warm-up lasts"


PYTORCH = """
def timer(*shape):
    print("noise")
    if shape[0] == "large":
        raise MemoryError("no room\\nat all")
    if shape[0] == "none":
        raise SystemExit(3)
    return lambda: 0.25
torch_peer.timer = timer
torch_peer.serve()
"""


def test_the_peer_runs_in_a_process_of_its_own(peers: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    program = tmp_path / "peer.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT / 'scripts')!r})\nimport torch_peer\n{PYTORCH}", encoding="utf-8")
    monkeypatch.setattr(peers.torch_peer, "__file__", str(program))
    peer = peers.torch_peer.PeerProcess()
    assert peer.times("base", 1, 128, True, 4, 1, 0.2) == [0.25] * 4
    with pytest.raises(RuntimeError, match="^no room$"):
        peer.times("large", 1, 128, True, 4, 1, 0.2)
    assert peer.times("base", 1, 128, False, 2, 1, 0.2) == [0.25] * 2, "an error ends a request, not the process"
    assert "PyTorch" in peer.versions()
    with pytest.raises(RuntimeError, match="ended with status 3"):
        peer.times("none", 1, 128, False, 2, 1, 0.2)
    assert peer.times("base", 1, 128, False, 2, 1, 0.2) == [0.25] * 2, "it is started again"
    assert peer.close() == 0


def test_all_windows_of_squad_packed_and_padded(run: Run, peers: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(peers, "PACK", 512)
    batches = peers.squad_batches(SAMPLE)
    sizes, lengths = [batch.size for batch in batches], [int(n) for batch in batches for n in batch.lengths]
    assert set(sizes[:-1]) == {512} and lengths != sorted(lengths)
    assert run("--models", "base", "--lengths", "--packed", SAMPLE) == 0
    (packed, padded) = rows(tmp_path)
    assert packed == ("packed", "fp16", f"{128 * sum(lengths) / len(lengths) / 1000:.4f}")
    assert padded == ("padded", "fp16", f"{128 * 384 / 1000:.4f}")


def test_engines_are_built_by_the_builder(peers: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(peers.torch_peer.MODELS, "tiny", (32, 2, 2, 64))
    path = peers.build_engine("tiny", "fp16", tmp_path / "kept")
    info, built = read_info(path), path.stat().st_mtime_ns
    assert peers.build_engine("tiny", "fp16", tmp_path / "kept").stat().st_mtime_ns == built, "built again"
    assert (info.precision, info.max_batch, info.max_length) == ("fp16", 2048, 384)
    monkeypatch.setitem(peers.torch_peer.MODELS, "odd", (36, 2, 2, 64))
    with pytest.raises(RuntimeError, match="the build ended with status 2: error: the cuda backend needs a hidden_size"):
        peers.build_engine("odd", "fp16", tmp_path)


def test_single_products_are_timed_in_ways_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmark_products.py names kernels by their numbers; those of the tests of the kernels exist."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("benchmark_products")

    def cuts(variants: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
        return {variant[:4] for variant in variants}

    assert cuts(script.MANY + script.FEW) <= cuts(test_cuda_products.EIGHT_BIT_VARIANTS)
    assert cuts(script.MANY + script.FEW + script.FEW_HALF) <= cuts(test_cuda_products.HALF_VARIANTS)
