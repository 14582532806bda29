# SPDX-License-Identifier: Apache-2.0
"""A repository of its own for each test of the shell scripts: the real scripts, and doubles of all that they run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]

# Each writes its arguments to $LOG.
DOCKER = '#!/usr/bin/env bash\nprintf "%s\\n" "$@" >>"$LOG"\nexit ${DOCKER_STATUS:-0}\n'
NVIDIA_SMI = """#!/usr/bin/env bash
case "$*" in *compute_cap*) echo "${CAPABILITY:-9.0}" ;; *name*) echo "${GPU:-NVIDIA Double}" ;; *) echo "GPU 0: a double" ;; esac
"""
NGC = """#!/usr/bin/env bash
echo ngc "$*" >>"$LOG"
name=${4#nvidia/}
mkdir -p "$6/${name%:*}_v${name#*:}" && echo weights >"$6/${name%:*}_v${name#*:}/file"
"""
# An engine is a file, with EngineInfo beside it; $BREAK is a part of the name of one that cannot be built.
BUILDER = """import json, os, sys
from pathlib import Path
words = sys.argv[1:]
with open(os.environ["LOG"], "a") as log: print("builder", *words, file=log)
engine = Path(words[words.index("-o") + 1])
if os.environ.get("BREAK", "nothing") in engine.name: sys.exit("error: broken on purpose")
engine.parent.mkdir(exist_ok=True)
engine.write_text("engine")
asked = words[words.index("--backend") + 1]
config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
info = {"format": 1, "backend": "tensorrt" if asked == "auto" else asked, "layout": "padded", "precision": "fp16",
        "batch_sizes": [1], "sequence_lengths": [8], "config": config}
Path(f"{engine}.json").write_text(json.dumps(info))
"""
# An engine that says "stale" is of another machine.
PERF = """import json, os, sys
from pathlib import Path
words = sys.argv[1:]
with open(os.environ["LOG"], "a") as log: print("perf", *words, file=log)
if Path(words[words.index("-e") + 1]).read_text() == "stale": sys.exit(4)
if os.environ.get("WAIT") == words[words.index("-b") + 1]:
    print("waiting", file=sys.stderr, flush=True)
    import time; time.sleep(60)
result = {"avg_ms": 2.0 * int(words[words.index("-b") + 1]), "p95_ms": 3.0, "p99_ms": 4.0}
print(json.dumps({"runtime": "Double 1.0", "results": [result]}))
"""
COMPILED_PERF = """#!/usr/bin/env bash
echo compiled "$@" >>"$LOG"
[ -z "${COMPILED_STATUS:-}" ] || exit "$COMPILED_STATUS"
while [ "$1" != --json ]; do shift; done
echo '{"runtime": 12080, "results": [{"average_ms": 0.5, "p95_ms": 0.6, "p99_ms": 0.7}]}' >"$2"
"""


def repository(directory: Path) -> Path:
    """Return a repository with the real scripts and helpers, and doubles of builder and perf."""
    root = directory / "a repository"
    (root / "bin").mkdir(parents=True)
    (root / "scripts").mkdir()
    for path in (ROOT / "scripts").glob("*.*"):
        shutil.copy(path, root / "scripts")
    (root / "helpers").symlink_to(ROOT / "helpers")
    (root / "docs").symlink_to(ROOT / "docs")
    for name, text in (("builder.py", BUILDER), ("builder_varseqlen.py", BUILDER), ("perf.py", PERF), ("perf_varseqlen.py", PERF)):
        (root / name).write_text(text)
    return root


def install(directory: Path, name: str, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    os.chmod(directory / name, 0o755)


def runner(root: Path) -> Run:
    """Return a function that runs a script from another directory than its own, with the doubles first on PATH."""

    def run(script: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {**variables_of(root), **environment}
        command = ["bash", str(root / "scripts" / script), *map(str, words)]
        return subprocess.run(command, cwd=root.parent, env=variables, capture_output=True, text=True, check=False, timeout=120)

    return run


def variables_of(root: Path) -> dict[str, str]:
    path = f"{root / 'bin'}:/usr/bin:/bin"
    return {"PATH": path, "LOG": str(root / "log"), "PYTHON": sys.executable, "HOME": str(root.parent)}


def log(root: Path) -> list[str]:
    """Return what the doubles were called with."""
    return (root / "log").read_text().splitlines() if (root / "log").exists() else []
