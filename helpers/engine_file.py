# SPDX-License-Identifier: Apache-2.0
"""What an engine file says of itself, and how files are written so that a killed build leaves nothing half-written.

A cpu engine is an ONNX file, a cuda engine a safetensors file; both carry the metadata inside. A TensorRT plan stays
plain and has it in `<engine>.json` beside it. The metadata is one JSON object; `EngineInfo` is its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from helpers.config import BertConfig, Layout, Precision
from helpers.errors import BertError, EngineMismatch, InputError
from helpers.files import is_stream, lack_of_room

METADATA_KEY = "demobert_engine"
FORMAT = 1
PLANS = (b"ftrt", b"ptrt")  # the magic words of TensorRT 8-11 plans
KINDS: dict[str, type | tuple[type, ...]] = {  # of the metadata that is more than shown
    "backend": str,
    "precision": str,
    "vocab": (str, type(None)),
    "lower_case": bool,
    "versions": dict,
    "gpu": (str, type(None)),
    "details": dict,
}


@dataclass(frozen=True)
class EngineInfo:
    """Backend, shapes, model and text settings of an engine."""

    backend: str  # "tensorrt", "cuda" or "cpu"
    layout: Layout
    precision: Precision
    batch_sizes: tuple[int, ...]
    sequence_lengths: tuple[int, ...]
    config: BertConfig
    vocab: str | None = None  # one token a line, as vocab.txt; None when the builder was given none
    lower_case: bool = True
    weights_digest: str = ""
    weights_source: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    gpu: str | None = None  # name and compute capability the engine is bound to; None for any machine
    details: dict[str, Any] = field(default_factory=dict)  # what only its backend reads
    created: str = ""

    @property
    def max_batch(self) -> int:
        return max(self.batch_sizes)

    @property
    def max_length(self) -> int:
        return max(self.sequence_lengths)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, path: Path) -> EngineInfo:
        """Return the parsed metadata; raise EngineMismatch for another format or damaged content."""
        try:
            values = json.loads(text)
            found = values.pop("format")
            if found != FORMAT:
                raise EngineMismatch(
                    f"{path} has engine format {found}, this version reads format {FORMAT}; build the engine again"
                )
            config = BertConfig.from_dict(values.pop("config"))
            for name in ("batch_sizes", "sequence_lengths"):
                values[name] = tuple(values[name])
                if not values[name] or not all(type(size) is int and size > 0 for size in values[name]):
                    raise ValueError(f"{name} {list(values[name])}")
            info = cls(config=config, **values)
            for name, kinds in KINDS.items():
                if not isinstance(getattr(info, name), kinds):
                    raise TypeError(f"{name} {getattr(info, name)!r:.60}")
            return info
        except BertError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _damaged(path, error) from error

    def describe(self) -> str:
        """Return one line for the user."""
        return (
            f"{self.backend} engine, {self.precision}, {self.layout}, batch sizes {list(self.batch_sizes)}, "
            f"sequence lengths {list(self.sequence_lengths)}"
        )


def text_digest(text: str) -> str:
    """Return a short digest of a vocabulary, for comparison and messages."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_info(path: str | Path) -> EngineInfo:
    """Return the metadata of an engine file of any backend: what stands in the file, else in the sidecar of a TensorRT plan.

    Raises InputError when there is no such file, EngineMismatch when it is no engine of ours. A plan without metadata
    (made by trtexec or the old demo) is not an error of this function's: see `is_bare_plan`.
    """
    path = Path(path)
    try:
        if path.is_dir() or not path.exists():
            what = "is a directory" if path.is_dir() else "does not exist"
            raise InputError(f"the engine {path} {what}; build one with builder.py -o {path}, or correct -e/--engine")
        size, text = path.stat().st_size, _own_metadata(path)
        beside = sidecar(path)
        if text is None and beside.is_file():
            path = beside
            text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"the engine {path} cannot be read ({error.strerror}); correct -e/--engine, or its permissions") from error
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error
    if text is None:
        raise EngineMismatch(
            f"{path} is no engine of builder.py or builder_varseqlen.py ({size} bytes without engine metadata); "
            "build it again from its checkpoint"
        )
    return EngineInfo.from_json(text, path)


def is_plan(path: str | Path) -> bool:
    """Return whether a file is a TensorRT plan; one that cannot be read is left to `read_info`."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            return file.read(4) in PLANS
    except OSError:
        return False


def is_bare_plan(path: str | Path) -> bool:
    """Return whether a file is a TensorRT plan without our metadata beside it."""
    return is_plan(path) and not os.path.exists(sidecar(path))


def sidecar(path: str | Path) -> Path:
    """Return where the metadata of a TensorRT plan lies."""
    return Path(f"{path}.json")


def drop_stale_sidecar(path: Path) -> bool:
    """Remove the metadata of an older TensorRT plan beside an engine that has its own inside; return whether there was one."""
    beside = sidecar(path)
    try:
        if _own_metadata(path) is None or EngineInfo.from_json(beside.read_text(encoding="utf-8"), beside).backend != "tensorrt":
            return False
        beside.unlink()
    except (OSError, UnicodeDecodeError, BertError):  # none, somebody else's, or one that has to stay
        return False
    return True


def _damaged(path: Path, error: Exception) -> EngineMismatch:
    return EngineMismatch(f"the metadata of {path} cannot be read ({error!r}); build the engine again")


def _own_metadata(path: Path) -> str | None:
    """Return our entry of a cpu or cuda engine; None where a file has none."""
    if is_stream(path) or is_plan(path):
        return None
    with path.open("rb") as file:
        return _safetensors_metadata(file) or _onnx_metadata(file)


def _safetensors_metadata(file: BinaryIO) -> str | None:
    """Return our entry of a safetensors header: 8 bytes length, little-endian, then JSON."""
    file.seek(0)
    head = file.read(9)
    if len(head) < 9 or head[8:9] != b"{":
        return None
    length = struct.unpack("<Q", head[:8])[0]
    if length > 100_000_000:  # the limit of the format's own library
        return None
    try:
        header = json.loads(b"{" + file.read(length - 1))
        return header.get("__metadata__", {}).get(METADATA_KEY)
    except (ValueError, AttributeError, RecursionError):
        return None


def _onnx_metadata(file: BinaryIO) -> str | None:
    """Return our entry of an ONNX file's metadata_props without reading its weights.

    Walks the top-level fields of the protobuf message (onnx.proto: graph = 7, metadata_props = 14) and seeks over all others.
    """
    prefix = b"\x0a" + bytes([len(METADATA_KEY)]) + METADATA_KEY.encode() + b"\x12"
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    while (tag := _varint(file)) is not None:
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            if _varint(file) is None:
                return None
        elif kind == 2:
            length = _varint(file)
            if length is None or length > size:
                return None
            if number != 14:
                file.seek(length, os.SEEK_CUR)
                continue
            entry = io.BytesIO(file.read(length))
            if entry.read(len(prefix)) == prefix:
                return None if _varint(entry) is None else entry.read().decode()  # the length of the value, then the value
        else:
            return None
    return None


def _varint(file: BinaryIO) -> int | None:
    """Return the next protobuf base-128 number of a file; None at its end or where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
    return None


def check_writable(path: str | Path) -> Path:
    """Raise InputError when a file cannot be written at `path`; so that hours of work do not end that way.

    Creates the directory. Returns the name that `written_whole` will use for the unfinished file: beside what a link leads to.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory; give the name of a file to write")
        if path.is_socket():
            raise InputError(f"{path} is a socket; give the name of a file to write")
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
        if not is_stream(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            temporary.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another place for it") from error
    return temporary


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds, remove it when it fails.

    Creates the directory. A link stays, and what it leads to is replaced; a device or a pipe is given the content when it is whole.
    Raises InputError where the place cannot be written, or has no room for what the block writes.
    """
    path = Path(path)
    temporary = check_writable(path)
    with contextlib.ExitStack() as stack:
        stream = is_stream(path)
        if stream:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()), path.name)
        else:
            stack.callback(temporary.unlink, missing_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask says: libraries may write a file for its owner alone
            yield temporary
            if stream:
                with temporary.open("rb") as whole, path.open("wb") as to:
                    shutil.copyfileobj(whole, to)
                return
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)
            os.replace(temporary, os.path.realpath(path))
        except Exception as error:
            if reason := lack_of_room(error):
                raise InputError(f"{path} cannot be written ({reason}); make room there, or choose another place for it") from error
            raise
