# SPDX-License-Identifier: Apache-2.0
"""infer_c compiled for Hopper, without a GPU: its file reader, its argument checks, and the options of perf."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from conftest import ROOT
from helpers.backends import cuda
from helpers.engine_file import METADATA_KEY
from test_cuda import CONFIG, header_of, no_module, write_engine  # noqa: F401  (a fixture)
from tests.cuda_engine import built


@pytest.fixture(scope="module")
def build() -> Path:
    """Return where infer_c and perf are, compiled for Hopper."""
    lacking = {"cuBLASLt was found neither": "cuBLAS: pip install nvidia-cublas"}
    settings = ("-DBERT_CUDA_ARCHITECTURES=90a", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v")
    return built.compiled(ROOT, ROOT / "build" / "cuda-test", *settings, tools=("nvcc",), lacking=lacking)


@pytest.fixture(scope="module")
def infer_c(build: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("infer_c", next(build.glob("infer_c*.so")))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reader_sees_what_python_wrote(infer_c: ModuleType, tmp_path: Path) -> None:
    assert infer_c.revision == cuda.REVISION
    found = infer_c.read_engine(str(write_engine(tmp_path / "e", activation="gelu_erf")))
    assert found == {**found, "layout": "packed", "precision": "fp16", "max_batch": 4, "max_length": 64, "gelu_erf": True}
    assert found["hidden_size"] == CONFIG.hidden_size and found["layer_norm_eps"] == pytest.approx(1e-12)


def rewritten(path: Path, change) -> Path:
    header, data = header_of(path)
    text = change(header)
    text = json.dumps(header) if text is None else text
    text += " " * (-len(text) % 8)  # as the format has it, or the tensors would begin between two values
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)
    return path


def in_metadata(change):
    """Return a change of the engine metadata inside the header."""

    def apply(header: dict) -> None:
        metadata = json.loads(header["__metadata__"][METADATA_KEY])
        change(metadata)
        header["__metadata__"][METADATA_KEY] = json.dumps(metadata)

    return apply


DAMAGE = {
    "no metadata": (lambda h: h.pop("__metadata__") and None, "no engine metadata"),
    "another backend": (in_metadata(lambda m: m.update(backend="cpu")), "cpu backend"),
    "another format": (in_metadata(lambda m: m.update(format=99)), "format 99"),
    "too long": (in_metadata(lambda m: m.update(sequence_lengths=[4096])), "4096"),
    "no layers": (in_metadata(lambda m: m["config"].update(num_hidden_layers=0)), "num_hidden_layers is 0"),
    "a number that would wrap": (in_metadata(lambda m: m.update(batch_sizes=[2**32 + 1])), "batch_sizes is 4294967297"),
    "no batch sizes": (in_metadata(lambda m: m.update(batch_sizes=[])), "no batch_sizes"),
    "another layout": (in_metadata(lambda m: m.update(layout="diagonal")), 'layout "diagonal" is unknown'),
    "another precision": (in_metadata(lambda m: m.update(precision="int4")), 'precision "int4" is unknown'),
    "another activation": (in_metadata(lambda m: m["config"].update(activation="relu")), 'activation "relu" is unknown'),
    "no epsilon": (in_metadata(lambda m: m["config"].update(layer_norm_eps=0)), "layer_norm_eps is 0"),
    "negative epsilon": (in_metadata(lambda m: m["config"].update(layer_norm_eps=-1)), "layer_norm_eps is -1"),
    "endless epsilon": (in_metadata(lambda m: m["config"].update(layer_norm_eps=1e300)), r"layer_norm_eps is 1e\+300"),
    "too wide": (
        in_metadata(lambda m: m["config"].update(hidden_size=5120, num_attention_heads=80)),
        "hidden_size 5120 .* above 4096",
    ),
    "odd width": (in_metadata(lambda m: m["config"].update(hidden_size=36)), "hidden_size 36 .* multiples of 8"),
    "odd inner width": (
        in_metadata(lambda m: m["config"].update(intermediate_size=100)),
        "intermediate_size 100 .* multiples of 8",
    ),
    "odd width in 8 bits": (
        in_metadata(lambda m: (m.update(precision="int8"), m["config"].update(hidden_size=40))),
        "multiples of 16",
    ),
    "large heads": (in_metadata(lambda m: m["config"].update(hidden_size=256, num_attention_heads=1)), "heads of size 256"),
    "overlap": (
        lambda h: h["l1_output_dense_bias"].update(data_offsets=h["l0_output_dense_bias"]["data_offsets"]),
        "l0_output_dense_bias and l1_output_dense_bias overlap",
    ),
    "between two values": (
        lambda h: h["cls_squad_output_bias"].update(data_offsets=[n + 2 for n in h["cls_squad_output_bias"]["data_offsets"]]),
        "cls_squad_output_bias of F32 begins between two values",
    ),
    "twice": (lambda h: json.dumps(h)[:-1] + ', "l0_output_dense_bias": {}}', 'key "l0_output_dense_bias" stands twice'),
    "endless lists": (lambda h: '{"a": [' + "0," * 300_000 + "0]}", "more than 200000 values"),
    "no UTF-8": (lambda h: json.dumps({**h, "\udcff": {"dtype": "F16", "shape": [-1]}}), "tensor \ufffd+ has an impossible shape"),
    "tensor outside": (lambda h: h["l0_output_dense_kernel"].update(data_offsets=[0, 10**12]), "outside the file"),
    "negative offset": (lambda h: h["l0_output_dense_kernel"].update(data_offsets=[-8, 8]), "outside the file"),
    "too few bytes": (lambda h: h["l0_output_dense_kernel"].update(data_offsets=[0, 2]), "2 bytes"),
    "endless shape": (lambda h: h["l0_output_dense_kernel"].update(shape=[2**40, 2**40]), "impossible shape"),
    "nesting": (lambda h: "[" * 100_000, "nesting"),
    "no JSON": (lambda h: '{"a": tru}', "JSON"),
    "unfinished text": (lambda h: '{"a', "closing quotation mark"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_engines_are_refused_by_name_and_reason(infer_c: ModuleType, tmp_path: Path, damage: str) -> None:
    change, word = DAMAGE[damage]
    path = rewritten(write_engine(tmp_path / "e"), change)
    with pytest.raises(RuntimeError, match=word) as caught:
        infer_c.read_engine(str(path))
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_named_as_such(infer_c: ModuleType, tmp_path: Path) -> None:
    header = b'{"\xff\xfe": 5}'
    (tmp_path / "e").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(RuntimeError, match="JSON"):
        infer_c.read_engine(str(tmp_path / "e"))
    header = b'{"\xff": {"dtype": "F16", "shape": [-1]}}'
    (tmp_path / "e").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(RuntimeError, match="tensor \ufffd has an impossible shape"):
        infer_c.read_engine(str(tmp_path / "e"))


def test_lengths_are_said_as_they_are(infer_c: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(struct.pack("<Q", 2**64 - 2) + b"{}")
    with pytest.raises(RuntimeError, match="header of 18446744073709551614 bytes"):
        infer_c.read_engine(str(tmp_path / "e"))


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 100) + b"{}"])
def test_files_that_are_no_engines(infer_c: ModuleType, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e").write_bytes(content)
    with pytest.raises(RuntimeError, match="the engine"):
        infer_c.read_engine(str(tmp_path / "e"))
    with pytest.raises(RuntimeError, match="cannot be opened"):
        infer_c.read_engine(str(tmp_path / "missing"))


def test_limits_beyond_the_engine_are_refused(infer_c: ModuleType, tmp_path: Path) -> None:
    path = str(write_engine(tmp_path / "e"))
    with pytest.raises(ValueError, match="at most batch 4 of length 64"):
        infer_c.bert_inf(path, 5, 64)
    for limits in ((-3, 0), (0, -1)):
        with pytest.raises(ValueError, match="give 1 and more, or 0 for the engine's own"):
            infer_c.bert_inf(path, *limits)
    many = str(rewritten(Path(path), in_metadata(lambda m: m.update(batch_sizes=[67108865]))))
    with pytest.raises(ValueError, match="batch 67108865 of length 64 has 4294967360 tokens; infer_c takes at most 1073741824"):
        infer_c.bert_inf(many)
    if infer_c.device_count() == 0:
        with pytest.raises(RuntimeError, match="no CUDA device"):
            infer_c.bert_inf(path, 1, 16, True)
        assert infer_c.capability() == 0


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--help"], 0, "usage: perf"),
        (["-b", "x", "-e", "e"], 1, "--batch_size x"),
        (["-b", "0", "-e", "e"], 1, "from 1 to"),
        (["-b", "99999999999", "-e", "e"], 1, "--batch_size 99999999999 is no whole number from 1 to 1000000000"),
        (["--algorithms", "{", "-e", "e"], 1, "--algorithms is no object in JSON (JSON: expected a key at byte 1)"),
        (["--algorithms", "[]", "-e", "e"], 1, "--algorithms is no object in JSON"),
        (["--sequence_length"], 1, "usage: perf"),
        ([], 1, "no engine given"),
        (["-e", "e", "stray"], 1, "unexpected argument stray"),
        (["-e", "/missing", "--sequence_length", "64", "--ramdon_seed", "1"], 255, "cannot be opened"),
    ],
)
def test_perf_options(build: Path, arguments: list[str], status: int, word: str) -> None:
    done = subprocess.run([build / "perf", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert word in done.stdout + done.stderr
