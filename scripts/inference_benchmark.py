#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What inference_benchmark.sh does: build absent engines, measure each, keep the results in a CSV file, draw them."""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

try:
    from benchmark_matrix import Configuration, arguments, facts_of_gpu, heading, matrix

    from helpers.backends.cpu import cpu_name
    from helpers.build import versions
    from helpers.engine_file import read_info, written_whole
    from helpers.errors import BertError
except ModuleNotFoundError as error:
    print(f"inference_benchmark.sh: {sys.executable} lacks {error.name}; run scripts/quickstart.sh once", file=sys.stderr)
    sys.exit(3)

COLUMNS = ("model", "seq_len", "batch", "precision", "engine", "avg_ms", "p95_ms", "p99_ms", "machine", "versions", "date")
# What INT8 adds to the build: attention and residual sums in INT8 where the GPU has kernels for it.
INT8_BORDERS = {"Volta": (), "Xavier": ("-iln",), "CPU": ()}
SIZES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}  # hidden, layers, heads, feed-forward
MISMATCH = 4  # exit status: the engine does not fit this machine


class Failed(Exception):
    """One configuration could not be measured; the rest goes on."""


def main() -> None:
    args = arguments()
    rows = read_results(args.output)
    machine = machine_name(args)
    todo, failed = matrix(args), 0
    print(f"{len(todo)} configurations on {machine}; results go to {args.output}", flush=True)
    for number, configuration in enumerate(todo, 1):
        print(f"\n== {number} of {len(todo)}: {heading(configuration, args.gpu)}", flush=True)
        if any(same(row, configuration, machine, args.backend) for row in rows):
            print("already measured")
            continue
        try:
            built_here = not (ROOT / configuration.engine).exists()
            row = measure(configuration, args, machine)
            if built_here and args.remove_engines:
                remove(configuration.engine)
            if row:
                rows.append(row)
                write_results(args.output, rows)
                print(f"average {rows[-1]['avg_ms']} ms, p95 {rows[-1]['p95_ms']} ms, p99 {rows[-1]['p99_ms']} ms")
        except Failed as error:
            failed += 1
            print(f"inference_benchmark.sh: {heading(configuration, args.gpu)} failed: {error}", file=sys.stderr, flush=True)
    if not args.dry_run and rows:
        chart(args)
    if failed:
        sys.exit(f"inference_benchmark.sh: {failed} of {len(todo)} configurations failed; run the same command to try those again")


def measure(configuration: Configuration, args: argparse.Namespace, machine: str) -> dict[str, Any]:
    """Return the row of one configuration, nothing on a dry run; an engine that does not fit this machine is built anew, once."""
    engine = configuration.engine
    absent = not (ROOT / engine).exists()
    if absent:
        build(configuration, args)
    if args.dry_run:
        perf(configuration, args.backend, args)
        return {}
    backend = backend_of(engine)
    if not absent and args.backend not in ("auto", backend):
        print(f"{engine} is a {backend} engine: building it for {args.backend}")
        build(configuration, args)
        backend, absent = backend_of(engine), True
    status, record = perf(configuration, backend, args)
    if status == MISMATCH and not absent:
        print(f"{engine} does not fit this machine: building it anew")
        build(configuration, args)
        backend = backend_of(engine)
        status, record = perf(configuration, backend, args)
    if status:
        raise Failed(f"the measurement ended with status {status}")
    result = record["results"][0]
    return {
        **dict(zip(COLUMNS, identity(configuration), strict=False)),
        "engine": backend + (", random weights" if configuration.random else ""),
        "avg_ms": f"{result.get('avg_ms', result.get('average_ms')):.4f}",
        "p95_ms": f"{result['p95_ms']:.4f}",
        "p99_ms": f"{result['p99_ms']:.4f}",
        "machine": machine,
        "versions": described(record),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def remove(engine: Path) -> None:
    for path in (ROOT / engine, ROOT / f"{engine}.json"):
        path.unlink(missing_ok=True)


def backend_of(engine: Path) -> str:
    try:
        return read_info(ROOT / engine).backend
    except BertError as error:
        raise Failed(f"{error} (remove it, and it is built again)") from error


def described(record: dict[str, Any]) -> str:
    """Return runtime and library versions of a measurement as one text."""
    known = {**versions(), **record.get("versions", {})}
    parts = [f"{name} {value}" for name, value in known.items()]
    parts += [f"{name} {record[name]}" for name in ("runtime", "driver", "cuda", "arithmetic") if name in record]
    return "; ".join(parts)


def build(configuration: Configuration, args: argparse.Namespace) -> None:
    """Build the engine of a configuration, with the options of the old benchmark."""
    c = configuration
    weights, config = random_weights(c, args.dry_run) if c.random else checkpoint(c, args.dry_run)
    command = ["builder_varseqlen.py" if c.megatron else "builder.py", *weights, "-o", c.engine, "-b", c.batch, "-s", c.length]
    command += ["-c", config, "--backend", args.backend]
    if not c.random:
        command += ["-v", f"{config}/vocab.txt"]
    if c.megatron:
        command += ["--fp16", "--int8", "--strict", "-tcf", "engines/build_megatron.tcf"]
        command += [] if c.random else ["--megatron", "-il"]
        command += ["--sparse"] if c.model == "megatron-sparse" else []
    elif c.precision in ("int8", "int8-qat", "fp8"):
        command += [f"--{c.precision.removesuffix('-qat')}", "--fp16", "--strict", "--calib-num", 1, "-tcf", "engines/build.tcf"]
        # One sentence is enough for speed and not for answers: keep its ranges away from the caches of real builds.
        command += [] if c.random else ["-p", f"engines/bert_{c.model}_{c.precision}_seqlen{c.length}_benchmark.calib"]
        command += INT8_BORDERS.get(args.gpu, ("-iln", "-imh")) if c.precision != "fp8" else ()
    else:
        command += [f"--{c.precision}", "-tcf", "engines/build.tcf"]
    if status := run([sys.executable, *command], args.dry_run):
        raise Failed(f"the build ended with status {status}")


def random_weights(configuration: Configuration, dry_run: bool) -> tuple[list[str], str]:
    """Return builder options for made-up weights and the directory of a bert_config.json, written here."""
    size = "large" if configuration.megatron else configuration.model
    hidden, layers, heads, inner = SIZES[size]
    config = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner}
    directory = Path("engines") / f"bert_{size}_config"
    if not dry_run:
        with written_whole(ROOT / directory / "bert_config.json") as temporary:
            temporary.write_text(json.dumps(config))
    return ["--random-weights", "1"], str(directory)


def checkpoint(configuration: Configuration, dry_run: bool) -> tuple[list[str], str]:
    """Return builder options for the downloaded weights and their configuration's directory."""
    c = configuration
    size = "large" if c.megatron else c.model
    length = 384 if c.megatron or c.length > 128 else 128  # the lengths that checkpoints exist for
    config = downloaded([size, str(length)], f"bert_tf_ckpt_{size}_qa_squad2_amp_{length}_v19.03.1", dry_run)
    if c.megatron:
        kind = c.model[9:]
        words = ["pyt", "megatron-large", "int8-qat", *(["sparse"] if kind == "sparse" else [])]
        directory = downloaded(words, f"bert_pyt_statedict_megatron_{kind}_int8qat_v21.03.0", dry_run)
        return ["-pkl", only_file(directory, "bert_pyt_statedict_megatron_*", dry_run)], config
    if c.precision == "int8-qat":
        directory = downloaded(["pyt", "v1_1", "large"], "bert_pyt_onnx_large_qa_squad11_amp_fake_quant_v1", dry_run)
        return ["-x", f"{directory}/bert_large_v1_1_fake_quant.onnx"], config
    return ["-m", f"{config}/model.ckpt"], config


def downloaded(words: list[str], name: str, dry_run: bool) -> str:
    """Return the directory of a checkpoint, downloaded where it is absent."""
    directory = Path("models") / "fine-tuned" / name
    if not (ROOT / directory).is_dir() and (status := run(["bash", "scripts/download_model.sh", *words], dry_run)):
        raise Failed(f"{name} could not be downloaded (status {status}); give --random-weights to measure without it")
    return str(directory)


def only_file(directory: str, pattern: str, dry_run: bool) -> str:
    found = [path for path in sorted((ROOT / directory).glob(pattern)) if path.is_file()]
    if not found and not dry_run:
        raise Failed(f"{directory} holds no file {pattern}; remove the directory, and it is downloaded again")
    return str(found[0].relative_to(ROOT)) if found else f"{directory}/{pattern}"


def perf(configuration: Configuration, backend: str, args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Return status and record of a measurement: by build/perf where it is compiled and runs the engine, else by perf.py."""
    c = configuration
    common = ["-e", c.engine, "-b", c.batch, "-s", c.length, "-i", args.iterations, "-w", args.warm_up_runs]
    program = ROOT / "build" / "perf"
    if backend != "cpu" and program.is_file():
        record = ROOT / f"{c.engine}.result"
        try:
            if not run([program, *common, "--enable_graph", "--json", record], args.dry_run):
                return 0, {} if args.dry_run else json.loads(record.read_text())
            print("build/perf did not run it: taking perf.py")
        except (OSError, ValueError) as error:
            raise Failed(f"build/perf left no result ({error})") from error
        finally:
            record.unlink(missing_ok=True)
    more = ["--lengths", "fixed"] if c.megatron else []
    graph = [] if backend == "cpu" else ["--enable-graph"]
    script = "perf_varseqlen.py" if c.megatron else "perf.py"
    command = [str(word) for word in (sys.executable, script, *common, *more, *graph, "--json")]
    print("+", shlex.join(command), flush=True)
    if args.dry_run:
        return 0, {}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        return done.returncode, {} if done.returncode else json.loads(done.stdout)
    except ValueError as error:
        raise Failed(f"{script} printed no result ({error})") from error


def run(command: list[Any], dry_run: bool = False) -> int:
    """Print a command and run it in the repository; return its status."""
    words = [str(word) for word in command]
    print("+", shlex.join(words), flush=True)
    return 0 if dry_run else subprocess.run(words, cwd=ROOT).returncode


def machine_name(args: argparse.Namespace) -> str:
    """Return what the results call this machine: its first GPU or its processor."""
    if args.gpu == "CPU" or args.backend == "cpu":
        return cpu_name()
    name = facts_of_gpu("name") or ("a GPU" if args.dry_run else None)
    if not name:
        print("inference_benchmark.sh: nvidia-smi finds no GPU here; give --gpu CPU to measure the cpu backend", file=sys.stderr)
        sys.exit(3)
    return name


def identity(configuration: Configuration) -> tuple[str, str, str, str]:
    c = configuration
    return c.title, str(c.length), str(c.batch), c.precision


def same(row: dict[str, str], configuration: Configuration, machine: str, backend: str) -> bool:
    """Return whether a row already is the result of a configuration on this machine."""
    measured, _, weights = row["engine"].partition(", ")
    return (
        tuple(row[name] for name in COLUMNS[:4]) == identity(configuration)
        and row["machine"] == machine
        and bool(weights) == configuration.random
        and backend in ("auto", measured)
    )


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the rows measured so far; end with status 1 for a file that is something else."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            sys.exit(f"inference_benchmark.sh: {path} holds other columns than {', '.join(COLUMNS)}; give another --output")
        return list(reader)


def write_results(path: Path, rows: list[dict[str, Any]]) -> None:
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def chart(args: argparse.Namespace) -> None:
    """Draw the results beside the CSV file; without matplotlib say how."""
    run([sys.executable, ROOT / "scripts" / "plot_benchmark.py", args.output.resolve()])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; run the same command to go on", file=sys.stderr)
        sys.exit(130)
    except BertError as error:
        print(f"inference_benchmark.sh: {error}", file=sys.stderr)
        sys.exit(error.status)
