#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write docs/options.md from helpers/options.py and helpers/errors.py; with --check only say whether it is up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import cli, errors  # noqa: E402
from helpers.options import COMMANDS, OPTIONS, Option  # noqa: E402

PAGE = ROOT / "docs" / "options.md"
HEAD = """# Options

<!-- Written by scripts/make_docs.py; change helpers/options.py and run it again. -->

Each of these seven commands has `-h` (`--help`) and `--version`. Long options may be shortened while only one option fits
(`--sp` for `--sparse`). An unknown option is an error; text with a word that begins with a hyphen must be quoted.
"""
FAMILIES = {
    "Building": "builder",
    "Asking": "inference",
    "Measuring": "perf",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when the page is out of date")
    args = parser.parse_args()
    text = page()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/options.md is out of date; run: python scripts/make_docs.py", file=sys.stderr)
    return 1


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for title, prefix in FAMILIES.items():
        commands = [name for name in COMMANDS if name.split("_")[0] == prefix]
        parts.append(f"## {title}\n\n" + "\n".join(f"- `{name}.py`: {COMMANDS[name]}" for name in commands) + "\n")
        rows = [row(option, commands) for option in OPTIONS if set(option.commands) & set(commands)]
        parts.append("| option | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    parts.append(statuses())
    return "\n".join(parts)


def row(option: Option, commands: list[str]) -> str:
    """Return an option's line of the table."""
    settings = option.settings
    flags = ", ".join(f"`{flag}`" for flag in option.flags)
    if settings.get("choices"):
        flags += " `" + "`\\|`".join(settings["choices"]) + "`"
    elif settings.get("action") not in ("store_true", "store_false"):
        flags += f" {settings.get('metavar', 'VALUE')}" + ("..." if settings.get("nargs") == "*" else "")
    notes = []
    if settings.get("required"):
        notes.append("Required.")
    if missing := [name for name in commands if name not in option.commands]:
        there = [name for name in commands if name in option.commands]
        notes.append(f"Only {', '.join(f'`{name}.py`' for name in there)}." if len(there) <= len(missing) else not_in(missing))
    if option.group:
        others = [other.flags[-1] for other in OPTIONS if other.group == option.group and other is not option]
        notes.append("Excludes " + ", ".join(f"`{flag}`" for flag in others) + ".")
    meaning = settings["help"].replace("|", "\\|").replace("<", "&lt;")
    return f"| {flags} | {' '.join([meaning[0].upper() + meaning[1:] + '.', *notes])} |"


def not_in(missing: list[str]) -> str:
    return f"Not {', '.join(f'`{name}.py`' for name in missing)}."


def statuses() -> str:
    """Return the table of exit statuses, from the exception family."""
    meanings: dict[int, list[str]] = {0: ["Done."]}
    for error in (errors.BertError, errors.UsageError, errors.MissingDependency, errors.EngineMismatch):
        meanings[error.status] = [(error.__doc__ or "").splitlines()[0]]
    meanings[errors.InputError.status].append((errors.InputError.__doc__ or "").splitlines()[0])
    meanings[cli.INTERRUPTED] = ["Ended by Ctrl-C; nothing half-written is left."]
    meanings[128 + 15] = ["Ended by SIGTERM; nothing half-written is left."]
    rows = "\n".join(f"| {status} | {' '.join(texts)} |" for status, texts in sorted(meanings.items()))
    return f"""## Exit statuses

Results go to stdout, everything else to stderr. A mistake gets one sentence there: what happened, with which values, what to do
next.

| status | meaning |
| --- | --- |
{rows}

`build/perf`, the C++ benchmark, keeps the old ones: 0, 1 for wrong options, 255 for everything else that fails. `build.sh`,
`launch.sh`, `download_model.sh`, `download_squad.sh` and `inference_benchmark.sh` of `scripts/` say theirs with `-h`.
"""


if __name__ == "__main__":
    sys.exit(main())
