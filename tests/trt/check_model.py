# SPDX-License-Identifier: Apache-2.0
"""The repository's model through the whole house: builder, plan, runtime, answers; its INT8 engine on 200 SQuAD questions."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import helpers.reference
from helpers import build, cuda_utils, qa
from helpers import options as command_line
from helpers.backends import LoadOptions
from helpers.batching import Batch, pack, random_batch
from helpers.data_processing import Example, read_squad
from helpers.reference import Reference
from helpers.squad_metrics import evaluate_v11
from trt.harness import WEAK, Recorded, options
from trt.models import INT8_PRODUCTS, MODEL, reference, relative_error, repository_model
from trt.number_types import exact
from trt.runtime_double import GPU

SAMPLE = Path(__file__).parents[2] / "squad" / "dev-sample-1000.json"
QUESTIONS = 200

VARIANTS: list[dict[str, Any]] = [
    {"no_plugins": True},
    {"layout": "packed"},
    {"no_plugins": True, "fp16": True},
    {"layout": "packed", "fp16": True},
    {"extra": {"deprecated_plugins": True}},
    {"v3_plugins": True, "fp16": True, "sequence_lengths": (72,)},
]


@functools.cache
def batch() -> Batch:
    return random_batch([48, 64, 9], 30522)


@functools.cache
def expected() -> np.ndarray:
    return reference(*repository_model())(batch())


@pytest.mark.parametrize("wanted", VARIANTS, ids=str)
def check_logits(wanted: dict[str, Any]) -> None:
    config, weights = repository_model()
    recorded = Recorded(
        config,
        weights,
        options(batch_sizes=(3,), **wanted) if "sequence_lengths" in wanted else options(**{"batch_sizes": (3,), **wanted}),
    )
    assert relative_error(recorded(batch()), expected()) <= (1e-2 if wanted.get("fp16") else 1e-4)


def trt_grid(x: np.ndarray, amax: np.ndarray) -> np.ndarray:
    """Round to INT8 as TensorRT does: FP32 scales, and codes from -128 where quantisation-aware training stops at -127."""
    scale = (np.asarray(amax) / 127).astype(np.float32)
    scale = scale.reshape((-1,) + (1,) * (x.ndim - 1)) if scale.ndim else scale
    return np.clip(np.rint(x / scale), -128, 127) * scale


class Oracle:
    """The simulated INT8 model as a session: rounded where the engine rounds."""

    def __init__(self, session: Any, kind: str) -> None:
        config, weights = repository_model()
        self.info, self.concurrency, self.batch_size = session.info, 1, session.batch_size
        everywhere = Reference(config, weights, np.float64, weights.ranges)
        self.run = everywhere if kind == "typed" else reference(config, weights, rounded=INT8_PRODUCTS, dtype=np.float64)


@functools.cache
def questions() -> tuple[Any, list[Example]]:
    """Return the dataset cut to the 200 questions with the shortest passages: NumPy in double precision is slow."""
    examples = sorted(read_squad(SAMPLE), key=lambda example: (len(example.passage), example.id))[:QUESTIONS]
    kept, dataset = {example.id for example in examples}, json.loads(SAMPLE.read_text())
    for article in dataset["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [question for question in paragraph["qas"] if question["id"] in kept]
    return dataset, examples


def answers(answerer: qa.QuestionAnswerer) -> dict[str, str]:
    return {example.id: best.answers[0].answer for example, best in answerer.answer_all(questions()[1])}


SIZES = ["-b", "8", *(word for length in (80, 96, 112, 128, 160) for word in ("-s", str(length)))]
INT8 = {
    # rounds where training did: products, attention, residuals
    "typed": ["--int8", "-iln", "-imh", "--no-plugins", *SIZES],
    # head size 32 and hidden size 384 leave the INT8 attention and norm plugins out: products only, kernels by TensorRT itself
    "plugins": ["--int8", "--use-deprecated-plugins", *SIZES],
}


@pytest.mark.parametrize("kind", ["plugins"] if WEAK else ["typed"])  # the network without plugins is the same on both
def check_int8_answers_of_200_questions(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same F1 as the simulated INT8 model within one point, and nearly the same answers.

    In double precision: FP32 sums of another order move single values across a rounding border, which changes some answers (9 of
    200, and with them F1 by more than a point) and says nothing about the network.
    """
    monkeypatch.setattr(cuda_utils, "open_gpu", lambda library="auto": GPU)
    monkeypatch.setattr(helpers.reference, "fake_quantise", lambda x, amax, precision: trt_grid(x, amax))
    engine = tmp_path / "demo.engine"
    model = ["-x", str(MODEL / "bert_minilm_l6_qa_fake_quant.onnx"), "-c", str(MODEL), "-o", str(engine), "--backend", "tensorrt"]
    build.main("builder", command_line.parse("builder", [*model, *INT8[kind]]))
    answerer = qa.QuestionAnswerer(engine, load=LoadOptions(log=lambda line: None, latency=True))
    assert answerer.info.details["network"] == kind
    with exact():
        found = answers(answerer)
    answerer.session = Oracle(answerer.session, kind)  # type: ignore[assignment]
    wanted = answers(answerer)
    scores = {
        name: evaluate_v11(questions()[0], predictions)["f1"] for name, predictions in (("engine", found), ("oracle", wanted))
    }
    same = sum(found[key] == wanted[key] for key in wanted)
    print(f"\n{kind}: F1 {scores['engine']:.2f}, simulated INT8 {scores['oracle']:.2f}, same answers {same} of {len(wanted)}")
    assert abs(scores["engine"] - scores["oracle"]) <= 1.0
    assert same >= 0.95 * len(wanted)


def check_session_keeps_batches_apart() -> None:
    """A sequence has the logits it has alone, whatever else is in the batch."""
    config, weights = repository_model()
    recorded = Recorded(config, weights, options(layout="packed"))
    b = batch()
    alone = [pack([b.ids[i:j]], [b.segments[i:j]]) for i, j in zip(b.cu_seqlens[:-1], b.cu_seqlens[1:], strict=True)]
    assert relative_error(recorded(b), np.concatenate([recorded(one) for one in alone])) <= 1e-5
