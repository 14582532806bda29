# SPDX-License-Identifier: Apache-2.0
"""F1 on the 1,000-question sample, for every precision of the cpu backend."""

from __future__ import annotations

import json

import pytest

from conftest import SAMPLE
from helpers.squad_metrics import evaluate_v11

# FP32 has F1 78.77 and EM 68.5 on this sample (78.78 and 68.56 on all of dev).
FLOOR = {"fp32": (78.7, 68.4), "fp16": (78.5, 68.2), "int8": (78.0, 67.5)}


@pytest.mark.parametrize("engine", FLOOR)
def test_f1_of_the_sample(script, engines, tmp_path, engine: str) -> None:
    path = tmp_path / "predictions.json"
    ended = script("inference", "-e", engines[engine], "-sq", SAMPLE, "-o", path)
    assert ended.status == 0, ended.err
    result = evaluate_v11(json.loads(SAMPLE.read_text()), json.loads(path.read_text()))
    f1, exact = FLOOR[engine]
    assert result["f1"] >= f1
    assert result["exact_match"] >= exact
