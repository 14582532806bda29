# SPDX-License-Identifier: Apache-2.0
"""Turns a preprocessed CUDA source into C++ for the emulator: inline PTX and shared variables, which g++ does not know.

python translate.py source.ii source.cpp
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__attribute__\s*\(\(.*?\)\)\s*)?char\s+(\w+)\s*\[\s*\]\s*;")
STATIC = re.compile(r"__shared__\s+([\w:<>]+)\s+(\w+)((?:\s*\[[^;]*?\])*)\s*;")
ASM = re.compile(r"\basm\b(?:\s+volatile)?\s*\(")
LITERAL = re.compile(r'"(?:\\.|[^"\\])*"')


def closing(text: str, start: int) -> int:
    """Return the place behind the parenthesis that closes the one before `start`; literals are skipped."""
    depth, place = 1, start
    while depth:
        if text[place] == '"':
            place = LITERAL.match(text, place).end()
            continue
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        place += 1
    return place


def parts(text: str, separator: str) -> list[str]:
    """Split at separators outside parentheses, brackets and literals."""
    found, depth, last, place = [], 0, 0, 0
    while place < len(text):
        c = text[place]
        if c == '"':
            place = LITERAL.match(text, place).end()
            continue
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(c, 0)
        if c == separator and depth == 0:
            found.append(text[last:place])
            last = place + 1
        place += 1
    return [*found, text[last:]]


def statement(inside: str) -> str:
    """Return the emulator's form of what stands between the parentheses of an asm statement."""
    text, *lists = parts(inside, ":")
    operands = []
    for each in (o for names in lists[:2] for o in parts(names, ",") if o.strip()):
        constraint, value = re.fullmatch(r'\s*"([^"]*)"\s*\((.*)\)\s*', each, re.DOTALL).groups()
        operands.append(f"::emulator::{'out' if constraint[0] in '=+' else 'in'}({value})")
    if not "".join(LITERAL.findall(text)).strip('"'):
        return "(void)0"  # only tells the compiler what to keep
    return f"[&] {{ static const ::emulator::Program program({text.strip()}); program.run({{{', '.join(operands)}}}); }}()"


def shared_variable(match: re.Match[str], number: int) -> str:
    """Return a reference to a block's variable for its declaration: `__shared__ int sums[32];`."""
    kind, name, dimensions = match.groups()
    place = f"::emulator::shared_variable({number}, sizeof(shared_{name}))"
    return f"using shared_{name} = {kind}{dimensions}; shared_{name}& {name} = *static_cast<shared_{name}*>({place});"


def translate(text: str) -> str:
    """Return the source with every declaration in shared memory and every asm statement in the emulator's form."""
    text = DYNAMIC.sub(r"char* const \1 = ::emulator::dynamic_shared();", text)
    numbers = itertools.count()
    text = STATIC.sub(lambda match: shared_variable(match, next(numbers)), text)
    done, place = [], 0
    while match := ASM.search(text, place):
        end = closing(text, match.end())
        done += [text[place : match.start()], statement(text[match.end() : end - 1])]
        place = end
    return "".join([*done, text[place:]])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(translate(Path(sys.argv[1]).read_text()))
