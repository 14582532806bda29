# SPDX-License-Identifier: Apache-2.0
"""Reading the user's text and JSON files, with one sentence for everything that can be wrong with them; what paths lead to."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.errors import InputError, UsageError


def cache_directory(name: str) -> Path:
    """Return where a backend keeps what is costly to find again: under XDG_CACHE_HOME, ~/.cache by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demobert" / name


def is_stream(path: Path) -> bool:
    """Return whether something is at a path that is neither a file nor a directory: a device, a pipe."""
    try:
        return path.exists() and not path.is_file() and not path.is_dir()
    except OSError:  # what cannot be looked at is for those to report who open it
        return False


def check_apart(inputs: Iterable[tuple[str, str | Path]], outputs: Iterable[tuple[str, str | Path | None]]) -> None:
    """Raise UsageError where an output would overwrite an input or another output; each comes with the option that names it.

    Devices and pipes may serve several.
    """
    used = {os.path.realpath(path): option for option, path in inputs}
    for option, path in outputs:
        if path is None or is_stream(Path(path)):
            continue
        other = used.setdefault(os.path.realpath(path), option)
        if other != option:
            raise UsageError(f"{option} names {path}, which {other} uses too; give each a file of its own")


def lack_of_room(error: Exception) -> str | None:
    """Return what the system said where an error means that a file could not grow, None where it means anything else.

    Told by the text: libraries that write files raise types of their own (safetensors' is no OSError).
    """
    reasons = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return next((reason for reason in reasons if reason in str(error)), None)


def is_file(path: str | Path, what: str) -> bool:
    """Return whether a file is there; raise InputError where the system does not let that be known."""
    try:
        return Path(path).is_file()
    except OSError as error:  # a directory without permission, a name too long
        raise InputError(f"the {what} {path} cannot be read ({error.strerror}); correct the path") from error


def lack_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out; told by the text too, as every library raises a type of its own for it."""
    signs = ("bad_alloc", "bad allocation", "out of memory", "Failed to allocate", os.strerror(errno.ENOMEM))
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def read_text(path: str | Path, what: str) -> str:
    """Return a UTF-8 file (a byte order mark is dropped); `what` names it in the message of the InputError."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the {what} {path} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error
    except OSError as error:
        raise InputError(f"the {what} {path} cannot be read ({error.strerror or error}); correct the path") from error
    except ValueError as error:  # a NUL in the path
        raise InputError(f"the {what} {path!r} cannot be read ({error}); correct the path") from error


def read_json(path: str | Path, what: str) -> Any:
    """Return a parsed JSON file."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {what} {path} is not valid JSON ({error}); it may be cut off, fetch it again") from error
