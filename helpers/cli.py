# SPDX-License-Identifier: Apache-2.0
"""How a script starts and ends: arguments in, one sentence on stderr and an exit status out; no traceback for a user's mistake."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from helpers.errors import BertError
from helpers.files import lack_of_memory, lack_of_room
from helpers.options import parser

INTERRUPTED = 130  # what shells report for a process ended by Ctrl-C


def log(line: str) -> None:
    """Tell the user something on stderr; results alone go to stdout."""
    print(line, file=sys.stderr, flush=True)


def progress_bar(total: int | None, unit: str) -> Any:
    """Return a tqdm bar on stderr with the time left, silent when that is no terminal."""
    from tqdm import tqdm

    return tqdm(total=total, unit=f" {unit}", file=sys.stderr, disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True)


def run_script(command: str, module: str, name: str | None = None) -> NoReturn:
    """Run `main(command, arguments)` of a helpers module as a command and end the process with its status.

    name: what the command is called in its messages, when that is not the script's file name.
    """
    options = parser(command)
    options.prog = name or options.prog
    sys.exit(status_of(lambda: importlib.import_module(module).main(command, options.parse_args())))


def status_of(work: Callable[[], int | None]) -> int:
    """Run the work of a script and return its exit status; errors of the BertError family become one line on stderr.

    work: may return a status of its own, where doing everything asked does not mean 0.
    """
    _open_streams()
    _unbreakable_output()
    signal.signal(signal.SIGTERM, _end)  # so that `finally` blocks remove what is half-written
    try:
        status = work()
        sys.stdout.flush()
        return status or 0
    except BertError as error:
        log(f"error: {error}")
        return error.status
    except KeyboardInterrupt:
        log("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left
        _discard_output()
        return 0
    except Exception as error:
        if lack_of_memory(error):
            log("error: out of memory; give a smaller -b/--batch-size or a shorter -s/--sequence-length")
            return BertError.status
        if not isinstance(error, OSError) or not (reason := lack_of_room(error)):
            raise
        _discard_output()
        log(f"error: the output cannot be written ({reason}); make room for it, or send it elsewhere")
        return BertError.status


def _discard_output() -> None:
    """Let nobody fail on what is still to be flushed to stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def _open_streams() -> None:
    """Give a stream that the caller has closed (`<&-`, `>&-`) nothing to read and nowhere to write, as /dev/null would.

    In this order: what is opened first takes the lowest free descriptor, which is the closed one's own.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _unbreakable_output() -> None:
    """Let text that the terminal's encoding lacks be printed escaped rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
