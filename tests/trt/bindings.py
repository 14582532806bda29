# SPDX-License-Identifier: Apache-2.0
"""TensorRT's real Python bindings without TensorRT: two wheels from the package index, and empty libraries so that they import.

The bindings need nine C symbols of three shared libraries. Libraries that define these as functions returning null are
compiled with the system's compiler; then every enum, class and signature of that version is there to be checked against.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VERSIONS = ("10.16.1.11", "11.4.0.106")
CACHE = Path(__file__).parents[2] / "build" / "trt-bindings"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
# `import tensorrt` is the name of the full product; it is the bindings and the libraries.
SHIM = "import sys\nimport tensorrt_bindings\nsys.modules['tensorrt'] = tensorrt_bindings\n"


class Unavailable(Exception):
    """The bindings could not be had, and why."""


def install(version: str) -> Path:
    """Return a directory that holds the bindings of a version, `tensorrt.py` and, in empty-libraries/, the libraries it links."""
    target = CACHE / version
    if not (target / "done").exists():
        target.mkdir(parents=True, exist_ok=True)
        wheel = [f"tensorrt-cu13-bindings=={version}", "--target", str(target), "--no-deps", "--upgrade"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wheel]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"pip could not install tensorrt-cu13-bindings {version}: {done.stderr.strip()[-400:]}")
        (target / "tensorrt.py").write_text(SHIM)
        _compile(target / "empty-libraries", version.split(".")[0])
        (target / "done").touch()
    return target


def _compile(directory: Path, major: str) -> None:
    directory.mkdir(exist_ok=True)
    source = directory / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for name in LIBRARIES:
        library = f"lib{name}.so.{major}"
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(directory / library), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise Unavailable("no C compiler (cc) to make the empty libraries with") from error
        if done.returncode:
            raise Unavailable(f"the empty library {library} could not be compiled: {done.stderr[-400:]}")


def environment(version: str) -> dict[str, str]:
    """Return the environment of a subprocess that can `import tensorrt` of this version."""
    target, root = install(version), Path(__file__).parents[2]
    paths = [str(root), str(root / "tests"), str(target), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(target / "empty-libraries"), os.environ.get("LD_LIBRARY_PATH", "")])),
    }


def environment_or_skip(version: str) -> dict[str, str]:
    """Return `environment`; where it cannot be made skip the test, but in CI (the variable CI is set) fail."""
    try:
        return environment(version)
    except Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
