# SPDX-License-Identifier: Apache-2.0
"""What argparse is given beside the options: types of numbers, and a parser that says what a misspelt option may have meant."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from typing import Any, NoReturn


def whole(least: int) -> Any:
    """Return an argparse type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small, give {least} or more")
        return value

    parse.__name__ = "whole number"  # argparse: "invalid whole number value: 'x'"
    return parse


def number(least: float = -math.inf, most: float = math.inf) -> Any:
    """Return an argparse type: a finite number from `least` to `most`."""

    def parse(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is no finite number, give one")
        if not least <= value <= most:
            limits = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{value:g} is out of range, give {limits}")
        return value

    parse.__name__ = "number"
    return parse


class Parser(argparse.ArgumentParser):
    """Argparse that suggests the option a misspelt one may have meant. Unambiguous prefixes of long options are accepted."""

    def error(self, message: str) -> NoReturn:
        match = re.search(r"unrecognized arguments: (.*)", message)
        if match:
            words = match[1].split()
            known = [flag for action in self._actions for flag in action.option_strings]
            unknown = next((word for word in words if word.startswith("-")), words[0])
            near = unknown.startswith("--") and difflib.get_close_matches(unknown.split("=")[0], known, n=1, cutoff=0.6)
            message = f"unknown option {unknown}" if unknown.startswith("-") else f"unexpected word {unknown!r}"
            if near:
                message += f"; did you mean {near[0]}?"
            elif unknown.startswith("-") and any("question" in flag for flag in known):
                message += "; text with a word that begins with a hyphen must be quoted"
            else:
                message += f"; {self.prog} -h lists the options"
        self.exit(2, f"{self.prog}: error: {message}\n")
