#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Print what 8 bits cost the repository's model, by format and calibration: the cuda backend's arithmetic, simulated in NumPy.

Ranges are measured on the last 100 questions of the sample and tried on the first 300. Takes ten minutes on two CPUs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import calibrator  # noqa: E402
from helpers.backends.cuda_file import simulation  # noqa: E402
from helpers.batching import Batch  # noqa: E402
from helpers.config import BertConfig  # noqa: E402
from helpers.data_processing import Example, WindowOptions, read_squad  # noqa: E402
from helpers.engine_file import EngineInfo  # noqa: E402
from helpers.qa import QuestionAnswerer  # noqa: E402
from helpers.reference import Reference  # noqa: E402
from helpers.squad_metrics import f1, gold_answers, raw_scores  # noqa: E402
from helpers.tokenization import FullTokenizer  # noqa: E402
from helpers.weights import Weights, onnx_model  # noqa: E402

MODEL = ROOT / "models" / "bert_minilm_l6_qa_squad11_fake_quant"
SAMPLE = ROOT / "squad" / "dev-sample-1000.json"
PERCENTILES = (99.99, 99.999, 100.0)
LENGTH = 384


class NumpySession:
    """A reference in the place of an engine; keeps its logits by batch."""

    concurrency = 1
    batch_size = 8

    def __init__(self, config: BertConfig, reference: Reference) -> None:
        self.info = EngineInfo("numpy", "packed", "fp32", (8,), (LENGTH,), config)
        self.reference = reference
        self.logits: list[np.ndarray] = []

    def run(self, batch: Batch) -> np.ndarray:
        self.logits.append(self.reference(batch))
        return self.logits[-1]

    def describe(self) -> dict[str, Any]:
        return {"device": "NumPy"}


def models(config: BertConfig, weights: Weights, tokenizer: FullTokenizer) -> Iterator[tuple[str, Reference]]:
    """Yield every model to try with what to call it, FP32 first."""
    yield "FP32", Reference(config, weights)
    for precision in ("int8", "fp8"):
        yield f"{precision.upper()}, the model's own ranges", simulation(config, weights, precision)
    batches = calibrator.text_batches(SAMPLE, tokenizer, 1000, LENGTH)[-100:]
    for percentile in PERCENTILES:
        ranges = calibrator.measure(config, weights, batches, percentile)
        # Weights without trained ranges of their kernels, as most are: every row has its largest weight.
        plain = Weights(weights.tensors, ranges)
        for precision in ("int8", "fp8"):
            yield f"{precision.upper()}, calibrated, {percentile:g} %", simulation(config, plain, precision)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=300, help="questions of the sample to answer (default: 300)")
    args = parser.parse_args(arguments)
    config = BertConfig.from_dir(MODEL)
    weights = onnx_model.read(config, MODEL / "bert_minilm_l6_qa_fake_quant.onnx")
    tokenizer = FullTokenizer.from_file(MODEL / "vocab.txt")
    examples = read_squad(SAMPLE)[: args.questions]
    answers = gold_answers(json.loads(SAMPLE.read_text(encoding="utf-8")))
    golds = {example.id: answers[example.id] for example in examples}
    exact: list[np.ndarray] = []
    print("| ranges | F1 | error of the logits, rms | answers unlike FP32's |\n| --- | --- | --- | --- |")
    first: dict[str, str] = {}
    for name, reference in models(config, weights, tokenizer):
        session = NumpySession(config, reference)
        found = answer(session, tokenizer, examples)
        exact, first = exact or session.logits, first or found
        score = 100 * np.mean(list(raw_scores(golds, found, f1).values()))
        difference = np.concatenate(session.logits) - np.concatenate(exact)
        error = np.linalg.norm(difference) / np.linalg.norm(np.concatenate(exact))
        unlike = sum(found[key] != first[key] for key in first)
        print(f"| {name} | {score:.2f} | {100 * error:.1f} % | {unlike} |", flush=True)


def answer(session: NumpySession, tokenizer: FullTokenizer, examples: list[Example]) -> dict[str, str]:
    """Return the answer to every question, by its id."""
    asked = QuestionAnswerer.of_session(session, tokenizer, WindowOptions(sequence_length=LENGTH))
    return {example.id: best.answers[0].answer for example, best in asked.answer_all(examples)}


if __name__ == "__main__":
    main()
