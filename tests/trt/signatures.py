# SPDX-License-Identifier: Apache-2.0
"""What TensorRT's real classes accept, read from the signatures their bindings carry in the docstrings."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any, SupportsFloat, SupportsInt

import numpy as np

NO_DEFAULT = object()


class Refused(TypeError):
    """The real API would not accept this call."""


@functools.cache
def overloads(cls: type, name: str) -> list[list[tuple[str, str, bool]]]:
    """Return for each overload of a method its (argument, type, has default), without self."""
    found, method = [], getattr(cls, name)
    for line in (method.__doc__ or "").splitlines():
        match = re.match(r"\s*(?:\d+\.\s*)?(\w+)\((.*)\)\s*->\s*(.+)$", line)
        if match and match.group(1) == name:
            found.append([_argument(text) for text in _split(match.group(2)) if not text.startswith("self:")])
    return found


def _split(text: str) -> list[str]:
    """Split arguments at commas outside brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += character in "[(<"
        depth -= character in "])>" and text[i - 1] != "-"
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def _argument(text: str) -> tuple[str, str, bool]:
    name, _, rest = text.partition(":")
    kind, equals, _ = rest.partition(" = ")
    return name.strip(), kind.strip(), bool(equals)


def bind(trt: Any, cls: type, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by name when one overload of cls.name accepts them; raise Refused otherwise."""
    method = inspect.getattr_static(cls, name, None)
    if method is None or isinstance(method, property):
        raise AttributeError(f"'{cls.__module__}.{cls.__name__}' object has no attribute '{name}'")
    choices = overloads(cls, name)
    assert choices, f"no signature of {cls.__name__}.{name} was found"
    reasons = []
    for arguments in choices:
        try:
            return _bind_one(trt, arguments, args, kwargs)
        except Refused as error:
            reasons.append(str(error))
    raise Refused(f"{cls.__name__}.{name}(): incompatible arguments: {' | '.join(reasons)}")


def _bind_one(trt: Any, arguments: list[tuple[str, str, bool]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    if len(args) > len(arguments):
        raise Refused(f"{len(args)} arguments for {len(arguments)}")
    bound = dict(zip((name for name, _, _ in arguments), args, strict=False))
    for name, value in kwargs.items():
        if name not in [argument for argument, _, _ in arguments] or name in bound:
            raise Refused(f"argument {name!r} unknown or given twice")
        bound[name] = value
    for name, kind, default in arguments:
        if name not in bound:
            if not default:
                raise Refused(f"argument {name!r} missing")
        elif not fits(trt, bound[name], kind, default):
            raise Refused(f"argument {name!r} is {bound[name]!r}, not {kind}")
    return bound


def fits(trt: Any, value: Any, kind: str, none_allowed: bool = False) -> bool:
    """Return whether pybind11 would convert a value to a type, named as in the signatures."""
    if value is None:
        return none_allowed
    if kind.startswith("collections.abc.Sequence["):
        inner = kind[len("collections.abc.Sequence[") : -1]
        return isinstance(value, (list, tuple)) and all(fits(trt, item, inner) for item in value)
    simple: dict[str, Any] = {
        "typing.SupportsInt": lambda v: isinstance(v, SupportsInt) and not isinstance(v, (float, np.floating)),
        "typing.SupportsFloat": lambda v: isinstance(v, SupportsFloat),
        "bool": lambda v: isinstance(v, bool),
        "str": lambda v: isinstance(v, str),
        "tuple": lambda v: isinstance(v, tuple),
        "list": lambda v: isinstance(v, list),
        "int": lambda v: isinstance(v, (int, np.integer)) and not isinstance(v, bool),
        "float": lambda v: isinstance(v, SupportsFloat),
        "object": lambda v: True,
        "typing_extensions.Buffer": lambda v: isinstance(v, (bytes, bytearray, memoryview)) or hasattr(v, "__buffer_of_plan__"),
    }
    simple["collections.abc.Buffer"] = simple["typing_extensions.Buffer"]  # its name from Python 3.12 on
    if kind in simple:
        return bool(simple[kind](value))
    name = re.split(r"[.:]", kind)[-1]
    if name == "Dims":
        return isinstance(value, trt.Dims) or (isinstance(value, (list, tuple)) and all(fits(trt, v, "int") for v in value))
    if name == "PluginFieldCollection_":
        return isinstance(value, (trt.PluginFieldCollection, trt.PluginFieldCollection_))
    real = getattr(trt, name, None)
    assert isinstance(real, type), f"no rule for the type {kind}"
    return isinstance(value, real) or issubclass(getattr(value, "stands_for", object), real)


def settable(trt: Any, cls: type, name: str, value: Any) -> None:
    """Raise what the real class raises when this property cannot be set to this value."""
    prop = inspect.getattr_static(cls, name, None)
    if not isinstance(prop, property):
        raise AttributeError(f"'{cls.__name__}' object has no attribute '{name}'")
    if prop.fset is None:
        raise AttributeError(f"property '{name}' of '{cls.__name__}' object has no setter")
    # The setter's own signature carries the type; getters of one class are loose where setters are not.
    text = prop.fset.__doc__ or prop.fget.__doc__ or ""  # type: ignore[union-attr]
    match = re.search(r"\(\w+: [^,]+, \w+: (.+)\) ->", text)
    kind = match.group(1) if match else "object"
    if not fits(trt, value, kind, none_allowed="lengths" in name or kind == "object"):
        raise Refused(f"{cls.__name__}.{name} cannot be {value!r}, it takes {kind}")


def readable(cls: type, name: str) -> None:
    """Raise AttributeError when the real class has no such member."""
    if inspect.getattr_static(cls, name, None) is None:
        raise AttributeError(f"'{cls.__module__}.{cls.__name__}' object has no attribute '{name}'")


def tuple_of(dims: Any) -> tuple[int, ...]:
    """Return Dims or any sequence as a tuple of int."""
    return tuple(int(size) for size in dims)
