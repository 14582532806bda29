# SPDX-License-Identifier: Apache-2.0
"""Tensors out of pickles and PyTorch files without PyTorch, by an unpickler that builds arrays, tensors and containers only.

A file may name any function to call; here it can name a fixed few, so loading never runs code from it. The formats: a pickle;
PyTorch's zip archive (since 1.6: data.pkl plus one entry a storage); and its older stream of pickles followed by raw storages.
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from helpers.errors import InputError

_DTYPES: dict[str, np.dtype[Any]] = {
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "Double": np.dtype("<f8"),
    "BFloat16": np.dtype("<u2"),  # widened to float32 when a tensor is made
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
# Every global that a pickle of arrays names; NumPy 2 moved its core, so both spellings.
_NUMPY = {("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of PyTorch's older format


class _Storage:
    """Raw values that one or several tensors view."""

    def __init__(self, kind: str, values: np.ndarray | None = None) -> None:
        self.kind, self.values = kind, values


class _Tensor:
    """A view of a storage; older files deliver the values after the pickle, so the array is made at the end."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        """Return the tensor as an array of its own; raise InputError where it reaches outside its storage."""
        values = self.storage.values
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        reach = 0 if 0 in self.shape else last + 1
        if values is None or min(self.strides, default=0) < 0 or not 0 <= self.offset <= self.offset + reach <= len(values):
            raise InputError("a tensor reaches outside its storage; the file is damaged")
        strides = tuple(stride * values.itemsize for stride in self.strides)
        array = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()
        if self.storage.kind == "BFloat16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *rest: Any) -> _Tensor:
    return tensor


def _bytes_of_text(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for `_codecs.encode`, by which protocol 2 spells bytes."""
    return text.encode("latin1")


def _storage_in_bytes(data: bytes) -> _Storage:
    """Stand in for `torch.storage._load_from_bytes`: a tensor inside a plain pickle carries its storage as a file."""
    content = _legacy_stream(io.BytesIO(data))
    if not isinstance(content, _Storage):
        raise pickle.UnpicklingError("a tensor's data is no storage")
    return content


class _Unpickler(pickle.Unpickler):
    """storages: what persistent ids refer to; each is asked for as (kind, key, number of values)."""

    def __init__(self, file: Any, storage: Any = None) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        if module == "torch" and name.endswith("Storage") and name.removesuffix("Storage") in _DTYPES:
            return name.removesuffix("Storage")
        stand_ins = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("torch.storage", "_load_from_bytes"): _storage_in_bytes,
            ("_codecs", "encode"): _bytes_of_text,
        }
        if (module, name) in stand_ins:
            return stand_ins[module, name]
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is no array or tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in _DTYPES:
            raise pickle.UnpicklingError(f"it refers to {pid!r} outside the file")
        result: _Storage = self._storage(pid[1], str(pid[2]), int(pid[4]))
        return result


def _zip_archive(path: str | Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise InputError(f"{path} was written on a big-endian machine; save it again on a little-endian one")
        storages: dict[str, _Storage] = {}

        def storage(kind: str, key: str, size: int) -> _Storage:
            if key not in storages:
                storages[key] = _Storage(kind, np.frombuffer(archive.read(f"{root}data/{key}"), _DTYPES[kind]))
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storage).load()


def _legacy_stream(file: BinaryIO) -> Any:
    """Read magic number, protocol, system facts, the object and its storage keys; then each storage: size as int64, values."""
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("it is no PyTorch file")
    _Unpickler(file).load()
    _Unpickler(file).load()
    storages: dict[str, _Storage] = {}
    content = _Unpickler(file, lambda kind, key, size: storages.setdefault(key, _Storage(kind))).load()
    for key in _Unpickler(file).load():
        kind = storages[key].kind
        (size,) = struct.unpack("<q", file.read(8))
        storages[key].values = np.frombuffer(file.read(size * _DTYPES[kind].itemsize), _DTYPES[kind], size)
    return content


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Return the named arrays of a PyTorch file or a pickle; a dictionary may hold them under `model`, `state_dict` or `module`.

    Raises InputError for a file that is missing, corrupt, or refers to anything but arrays, tensors and plain containers.
    """
    try:
        if zipfile.is_zipfile(path):
            content = _zip_archive(path)
        else:
            with open(path, "rb") as file:
                head = file.read(32)
                file.seek(0)
                magic = pickle.dumps(_LEGACY_MAGIC, 2)[2:-1] in head
                content = _legacy_stream(file) if magic else _Unpickler(file).load()
        return _named_arrays(content, path)
    except OSError as error:
        raise InputError(f"the file {path} cannot be read ({error.strerror or error}); correct the path") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path} cannot be loaded: {str(error) or repr(error)}; give a file of tensors only") from error


def _named_arrays(content: Any, path: str | Path) -> dict[str, np.ndarray]:
    for key in ("model", "state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise InputError(f"it holds a {type(content).__name__} and no dictionary of tensors; give a state dict")
    arrays = {str(name): value.array() if isinstance(value, _Tensor) else value for name, value in content.items()}
    arrays = {name: np.asarray(value) for name, value in arrays.items() if isinstance(value, np.ndarray | np.generic)}
    if not arrays:
        raise InputError("it holds no tensors; give a state dict")
    return arrays
