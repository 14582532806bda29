# SPDX-License-Identifier: Apache-2.0
"""inference_benchmark.sh with doubles of GPU, network, builder and perf: matrix, commands, resuming, failures; and its chart."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from conftest import ROOT
from doubles import COMPILED_PERF, NGC, NVIDIA_SMI, Run, install, log, variables_of

SMALL = ("--models", "base", "--lengths", "128", "--precisions", "fp16", "--random-weights")


def rows(root: Path, gpu: str = "hopper") -> list[dict[str, str]]:
    with (root / "results" / f"inference_benchmark_{gpu}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def gpu(root: Path) -> None:
    install(root / "bin", "nvidia-smi", NVIDIA_SMI)


def test_the_whole_matrix(run: Run, root: Path) -> None:
    done = run("inference_benchmark.sh", "--gpu", "Turing", "--dry-run")
    assert done.returncode == 0, done.stderr
    names = [word.split("engines/")[1] for word in done.stdout.split() if word.endswith("_benchmark.engine")]
    unique = list(dict.fromkeys(names))
    assert len(unique) == 140
    assert unique[0] == "bert_base_int8_bs1_seqlen128_benchmark.engine"
    assert unique[-1] == "bert_large_fp32_bs128_seqlen384_benchmark.engine"
    assert "bert_large_int8-qat_bs24_seqlen384_benchmark.engine" in unique
    assert not (root / "results").exists() and not (root / "engines").exists()


@pytest.mark.parametrize(
    ("gpu", "borders", "iterations"),
    [("Volta", "", 1000), ("Xavier", "-iln", 1000), ("Turing", "-iln -imh", 1000), ("Ampere", "-iln -imh", 2000)]
    + [(name, "-iln -imh", 2000) for name in ("Ada", "Hopper", "Blackwell")],
)
def test_commands_of_an_architecture(run: Run, gpu: str, borders: str, iterations: int) -> None:
    words = ("--gpu", gpu, "--dry-run", "--models", "large", "--lengths", "384", "--batches", "8")
    lines = run("inference_benchmark.sh", *words, "--precisions", "int8", "int8-qat", "fp32").stdout.splitlines()
    commands = [line.split(" ", 2)[2] for line in lines if line.startswith("+ ")]
    directory = "models/fine-tuned/bert_tf_ckpt_large_qa_squad2_amp_384_v19.03.1"
    assert commands[0] == "scripts/download_model.sh large 384"
    engine = "engines/bert_large_int8_bs8_seqlen384_benchmark.engine"
    assert commands[1] == (
        f"builder.py -m {directory}/model.ckpt -o {engine} -b 8 -s 384 -c {directory} --backend auto -v {directory}/vocab.txt "
        "--int8 --fp16 --strict --calib-num 1 -tcf engines/build.tcf -p engines/bert_large_int8_seqlen384_benchmark.calib "
        + borders
    ).rstrip(" ")
    assert commands[2] == f"perf.py -e {engine} -b 8 -s 384 -i {iterations} -w 100 --enable-graph --json"
    assert "scripts/download_model.sh pyt v1_1 large" in commands
    onnx = "models/fine-tuned/bert_pyt_onnx_large_qa_squad11_amp_fake_quant_v1/bert_large_v1_1_fake_quant.onnx"
    assert any(command.startswith(f"builder.py -x {onnx} ") for command in commands)
    assert any("--fp32 " in command for command in commands)


def test_commands_are_ones_that_the_programs_accept(run: Run) -> None:
    from helpers.options import parse

    for script, words in (("inference_benchmark.sh", ()), ("inference_benchmark_megatron.sh", ())):
        for random in ((), ("--random-weights",)):
            done = run(script, "--gpu", "Hopper", "--dry-run", "--batches", "1", "--lengths", "384", *words, *random)
            commands = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("+ ") and ".py " in line]
            assert commands, done.stderr
            for command, *arguments in commands:
                parse(command.removesuffix(".py"), arguments)


def test_megatron_measures_dense_weights_as_dense(run: Run) -> None:
    done = run("inference_benchmark_megatron.sh", "--gpu", "Ampere", "--dry-run")
    assert done.stdout.startswith("40 configurations")
    dense, sparse = (
        f"engines/bert_mt_large_int8-qat_bs128_seqlen384_weight{kind}_benchmark.engine" for kind in ("dense", "sparse")
    )
    build = {line.split(" -o ")[1].split()[0]: line for line in done.stdout.splitlines() if "builder_varseqlen.py" in line}
    assert "megatron_dense_int8qat" in build[dense] and "--sparse" not in build[dense]
    assert "megatron_sparse_int8qat" in build[sparse] and "--sparse" in build[sparse]


@pytest.mark.usefixtures("gpu")
def test_results_are_kept_and_not_measured_twice(run: Run, root: Path) -> None:
    first = run("inference_benchmark.sh", *SMALL, "--batches", "1", "2")
    assert first.returncode == 0, first.stderr
    assert [(row["batch"], row["avg_ms"], row["machine"]) for row in rows(root)] == [
        ("1", "2.0000", "NVIDIA Double"),
        ("2", "4.0000", "NVIDIA Double"),
    ]
    row = rows(root)[0]
    assert (row["model"], row["seq_len"], row["precision"], row["engine"]) == (
        "bert-base",
        "128",
        "fp16",
        "tensorrt, random weights",
    )
    assert "runtime Double 1.0" in row["versions"] and "demobert " in row["versions"]
    before = log(root)
    again = run("inference_benchmark.sh", *SMALL, "--batches", "1", "2", "4")
    assert again.stdout.count("already measured") == 2
    assert [line.split()[0] for line in log(root)[len(before) :]] == ["builder", "perf"]
    assert len(rows(root)) == 3
    other = run("inference_benchmark.sh", *SMALL, "--batches", "1", GPU="NVIDIA Other")
    assert other.returncode == 0 and len(rows(root)) == 4


@pytest.mark.usefixtures("gpu")
def test_one_failure_does_not_stop_the_rest(run: Run, root: Path) -> None:
    done = run("inference_benchmark.sh", *SMALL, "--batches", "1", "2", "4", BREAK="_bs2_")
    assert done.returncode == 1
    assert "bert-base fp16, sequence length 128, batch size 2, Hopper failed: the build ended with status 1" in done.stderr
    assert "1 of 3 configurations failed" in done.stderr
    assert [row["batch"] for row in rows(root)] == ["1", "4"]
    assert run("inference_benchmark.sh", *SMALL, "--batches", "1", "2", "4").returncode == 0
    assert [row["batch"] for row in rows(root)] == ["1", "4", "2"]


@pytest.mark.usefixtures("gpu")
def test_engines_that_are_there_are_used_unless_they_do_not_fit(run: Run, root: Path) -> None:
    run("inference_benchmark.sh", *SMALL, "--batches", "1", "2")
    engines = sorted((root / "engines").glob("*.engine"))
    engines[0].write_text("stale")
    shutil.rmtree(root / "results")
    (root / "log").unlink()
    done = run("inference_benchmark.sh", *SMALL, "--batches", "1", "2")
    assert (done.returncode, len(rows(root))) == (0, 2), done.stderr
    assert [line.split()[0] for line in log(root)] == ["perf", "builder", "perf", "perf"]
    assert "does not fit this machine: building it anew" in done.stdout


@pytest.mark.usefixtures("gpu")
def test_compiled_perf_is_preferred_and_replaced_where_it_fails(run: Run, root: Path) -> None:
    install(root / "build", "perf", COMPILED_PERF)
    assert run("inference_benchmark.sh", *SMALL, "--batches", "1").returncode == 0
    words = next(line for line in log(root) if line.startswith("compiled")).split()
    assert "--enable_graph" in words and words[words.index("-i") + 1] == "2000" and words[words.index("-w") + 1] == "100"
    assert rows(root)[0]["avg_ms"] == "0.5000" and "runtime 12080" in rows(root)[0]["versions"]
    assert not list((root / "engines").glob("*.result"))
    assert run("inference_benchmark.sh", *SMALL, "--batches", "2", COMPILED_STATUS="255").returncode == 0
    assert rows(root)[1]["avg_ms"] == "4.0000"


@pytest.mark.usefixtures("gpu")
def test_random_weights_bring_their_configuration_and_engines_can_go(run: Run, root: Path) -> None:
    done = run("inference_benchmark.sh", *SMALL, "--batches", "1", "--remove-engines", "--precisions", "int8")
    assert done.returncode == 0, done.stderr
    words = log(root)[0].split()
    assert words[words.index("--random-weights") + 1] == "1" and "-p" not in words and "-v" not in words
    config = json.loads((root / words[words.index("-c") + 1] / "bert_config.json").read_text())
    assert config["hidden_size"] == 768
    assert [path.name for path in (root / "engines").iterdir()] == ["bert_base_config"]


@pytest.mark.usefixtures("gpu")
def test_checkpoints_are_downloaded_once_and_never_made_up(run: Run, root: Path) -> None:
    words = ("--models", "base", "--lengths", "128", "--precisions", "fp16", "--batches", "1", "2")
    without = run("inference_benchmark.sh", *words)
    assert without.returncode == 1
    assert without.stderr.count("give --random-weights to measure without it") == 2
    assert not (root / "results").exists()
    install(root / "bin", "ngc", NGC)
    assert run("inference_benchmark.sh", *words).returncode == 0
    assert [line.split()[0] for line in log(root)] == ["ngc", "builder", "perf", "builder", "perf"]
    assert "--random-weights" not in " ".join(log(root))


@pytest.mark.usefixtures("gpu")
def test_ctrl_c_keeps_what_is_measured(root: Path, tmp_path: Path) -> None:
    variables = {**variables_of(root), "WAIT": "2"}
    command = ["bash", str(root / "scripts" / "inference_benchmark.sh"), *SMALL, "--batches", "1", "2"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell, these tests among them, may not
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=tmp_path, env=variables, start_new_session=True, stderr=pipe, text=True, preexec_fn=heed
    )
    assert process.stderr
    while process.stderr.readline().strip() != "waiting":
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; run the same command to go on" in err
    assert [row["batch"] for row in rows(root)] == ["1"]


def test_the_cpu_needs_no_gpu(run: Run, root: Path) -> None:
    done = run("inference_benchmark.sh", "--gpu", "CPU", *SMALL, "--batches", "1")
    assert done.returncode == 0, done.stderr
    assert "--backend cpu" in log(root)[0] and "-i 20 -w 3" in log(root)[1] and "--enable-graph" not in log(root)[1]
    assert rows(root, "cpu")[0]["engine"] == "cpu, random weights"


@pytest.mark.parametrize(("capability", "name"), [("7.0", "volta"), ("8.6", "ampere"), ("8.9", "ada"), ("12.0", "blackwell")])
def test_the_architecture_is_that_of_the_machine(run: Run, root: Path, gpu: None, capability: str, name: str) -> None:
    done = run("inference_benchmark.sh", *SMALL, "--batches", "1", "--dry-run", CAPABILITY=capability)
    assert f"inference_benchmark_{name}.csv" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--gpu", "Pascal"], 2, "invalid choice: 'Pascal'"),
        (["--gpu", "CPU", "--backend", "cuda"], 2, "--gpu CPU measures the cpu backend"),
        (["--gpu", "CPU", "--megatron"], 2, "Megatron's residuals are TensorRT's alone; give --random-weights"),
        (["--gpu", "Ada", "--batches", "0"], 2, "--batches takes whole numbers of at least 1"),
        ([], 3, "nvidia-smi names no GPU that is known"),
        (["--gpu", "Ada"], 3, "nvidia-smi finds no GPU here; give --gpu CPU"),
        (["--gpu", "CPU", "--output", "other.csv"], 1, "other.csv holds other columns than model, seq_len"),
    ],
)
def test_benchmark_mistakes(run: Run, root: Path, tmp_path: Path, words: list[str], status: int, sentence: str) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    done = run("inference_benchmark.sh", *words)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert sentence in done.stderr
    assert log(root) == []


def test_a_python_without_the_packages(run: Run, root: Path) -> None:
    install(root / "bin", "bare", f'#!/usr/bin/env bash\nexec {sys.executable} -S "$@"\n')
    done = run("inference_benchmark.sh", "--gpu", "CPU", PYTHON=str(root / "bin" / "bare"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "lacks numpy; run scripts/quickstart.sh once" in done.stderr


def test_base_has_no_quantisation_aware_checkpoint(run: Run) -> None:
    done = run("inference_benchmark.sh", "--gpu", "Ampere", "--dry-run", "--models", "base", "--precisions", "int8-qat")
    assert (done.returncode, done.stderr) == (0, "skipped: base int8-qat, which has no checkpoint\n")


# plot_benchmark.py


@pytest.fixture(scope="module")
def plot() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plot_benchmark", ROOT / "scripts" / "plot_benchmark.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_published_tables_are_whole(plot: ModuleType) -> None:
    published = plot.read(plot.PUBLISHED)
    assert len(published) == 538
    chosen = plot.newest(published, ["A100", "T4"])
    assert {row["source"][:13] for row in chosen if row["gpu"] == "A100"} == {"TensorRT 10.1"}
    curves = plot.lines(chosen, "bert-large", "384", "gpu")
    assert set(curves) == {"int8 A100", "fp16 A100", "int8 T4", "fp16 T4"}
    assert [batch for batch, _ in curves["fp16 T4"]] == [1, 2, 4, 8, 12, 16, 24, 32, 64, 128]


def measured(path: Path) -> Path:
    rows = ["model,seq_len,batch,precision,engine,avg_ms,p95_ms,p99_ms,machine,versions,date"]
    rows += [f"bert-base,128,{batch},fp16,cuda,{batch / 3},1,1,A GPU,x,2026-01-01" for batch in (1, 2)]
    path.write_text("\n".join(rows))
    return path


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_chart(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    chart = tmp_path / f"chart{suffix}"
    command = [sys.executable, str(ROOT / "scripts" / "plot_benchmark.py"), str(measured(tmp_path / "r.csv")), "-o", str(chart)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLCONFIGDIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, f"chart: {chart}\n"), done.stderr
    assert chart.stat().st_size > 5000


def test_chart_without_matplotlib_names_the_package(tmp_path: Path, plot: ModuleType, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as end:
        plot.draw(plot.read(measured(tmp_path / "r.csv")), [], tmp_path / "chart.svg")
    assert end.value.code == 3
    assert "pip install matplotlib" in capsys.readouterr().err


def test_chart_of_something_else(tmp_path: Path, plot: ModuleType) -> None:
    (tmp_path / "r.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="cannot be read as results"):
        plot.read(tmp_path / "r.csv")
