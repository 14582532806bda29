# SPDX-License-Identifier: Apache-2.0
"""The repository's model through the whole house: builder, plan, runtime, answers; its INT8 engine on 200 SQuAD questions."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trt.bindings import CACHE
from trt.harness import WEAK, Recorded, options
from trt.models import MODEL, reference, relative_error, repository_model
from trt.runtime_double import GPU

from helpers import build, cuda_utils, options as command_line, qa
from helpers.backends import LoadOptions
from helpers.batching import Batch, pack, random_batch
from helpers.data_processing import Example, read_squad
from helpers.reference import Reference
from helpers.squad_metrics import evaluate_v11

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


class Oracle:
    """The simulated INT8 model as a session: every tensor with a stored range rounded."""

    def __init__(self, session: Any) -> None:
        config, weights = repository_model()
        self.info, self.concurrency, self.batch_size = session.info, 1, session.batch_size
        self.run = Reference(config, weights, ranges=weights.ranges)


@functools.cache
def questions() -> tuple[Any, list[Example]]:
    """Return the dataset cut to 200 questions spread over the sample."""
    dataset = json.loads(SAMPLE.read_text())
    every = len(read_squad(SAMPLE)) // QUESTIONS
    kept = {example.id for example in read_squad(SAMPLE)[::every][:QUESTIONS]}
    for article in dataset["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [question for question in paragraph["qas"] if question["id"] in kept]
    return dataset, [example for example in read_squad(SAMPLE) if example.id in kept]


def answers(answerer: qa.QuestionAnswerer) -> dict[str, str]:
    return {example.id: best.answers[0].answer for example, best in answerer.answer_all(questions()[1])}


def oracle_answers(answerer: qa.QuestionAnswerer) -> dict[str, str]:
    """Return the oracle's answers, kept between the two versions' suites under the digest of all they depend on."""
    house = Path(build.__file__).parent
    sources = [house / name for name in ("reference.py", "data_processing.py", "tokenization.py", "qa.py")]
    digest = hashlib.sha256(repository_model()[1].digest().encode())
    for path in (*sources, SAMPLE, Path(__file__)):
        digest.update(path.read_bytes())
    kept = CACHE / f"simulated-int8-{digest.hexdigest()[:16]}.json"
    if not kept.exists():
        answerer.session = Oracle(answerer.session)  # type: ignore[assignment]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(answers(answerer)))
    return json.loads(kept.read_text())  # type: ignore[no-any-return]


INT8 = {
    "plugins": ["builder", "--int8", "-b", "8", "-s", "128", "-s", "192", "-s", "256", "-s", "384"],
    "packed": ["builder_varseqlen", "--int8", "--fp16", "--no-plugins", "-b", "8", "-s", "384"],
}


@pytest.mark.parametrize(
    "kind",
    ["plugins"] if WEAK else ["packed"],  # the network without plugins is the same on both; once is enough
)
def check_int8_answers_of_200_questions(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_utils, "open_gpu", lambda library="auto": GPU)
    command, *arguments = INT8[kind]
    engine = tmp_path / "demo.engine"
    model = ["-x", str(MODEL / "bert_minilm_l6_qa_fake_quant.onnx"), "-c", str(MODEL), "-o", str(engine), "--backend", "tensorrt"]
    build.main(command, command_line.parse(command, [*model, *arguments]))
    answerer = qa.QuestionAnswerer(engine, load=LoadOptions(log=lambda line: None, latency=True))
    assert answerer.info.details["network"] == ("plugins" if kind == "plugins" else "typed")
    found, wanted = answers(answerer), oracle_answers(answerer)
    scores = {name: evaluate_v11(questions()[0], predictions) for name, predictions in (("engine", found), ("oracle", wanted))}
    same = sum(found[key] == wanted[key] for key in wanted)
    print(
        f"\n{kind}: F1 {scores['engine']['f1']:.2f}, simulated INT8 {scores['oracle']['f1']:.2f}, same answers {same} of {len(wanted)}"
    )
    assert abs(scores["engine"]["f1"] - scores["oracle"]["f1"]) <= 1.0
    assert same >= 0.9 * len(wanted)


def check_session_keeps_batches_apart() -> None:
    """A sequence has the logits it has alone, whatever else is in the batch."""
    config, weights = repository_model()
    recorded = Recorded(config, weights, options(layout="packed"))
    b = batch()
    alone = [pack([b.ids[i:j]], [b.segments[i:j]]) for i, j in zip(b.cu_seqlens[:-1], b.cu_seqlens[1:], strict=True)]
    assert relative_error(recorded(b), np.concatenate([recorded(one) for one in alone])) <= 1e-5
