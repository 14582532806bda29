# SPDX-License-Identifier: Apache-2.0
"""Records the network of one set of build options with the double and runs batches through it in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.backends.trt import api, choice, engine_builder, profiles
from helpers.batching import Batch
from helpers.config import BertConfig, BuildOptions
from helpers.weights import Weights
from trt import double
from trt.executor import Executor

TRT = double.install()
MAJOR = int(TRT.__version__.split(".")[0])
WEAK = MAJOR == 10


def options(**values: Any) -> BuildOptions:
    """Return build options; the output is never written."""
    values.setdefault("batch_sizes", (4,))
    values.setdefault("sequence_lengths", (64,))
    return BuildOptions(Path("engine"), **values)


class Recorded:
    """A network built with the double: what was chosen, recorded and configured."""

    def __init__(self, config: BertConfig, weights: Weights, wanted: BuildOptions, sm: int = 80) -> None:
        self.config, self.options = config, wanted
        self.kind, self.note = choice.choose(config, wanted, WEAK, sm)
        log = api.logger(TRT, False)
        if self.kind == "plugins":
            choice.require_plugins(api.load_plugins(TRT, log), TRT.__version__)
        builder = TRT.Builder(log)
        shapes = profiles.plan(wanted, self.kind)
        self.graph = engine_builder.define(TRT, builder, config, weights, wanted, self.kind, shapes)
        self.settings = engine_builder.configure(TRT, builder, self.graph.network, wanted, self.kind, shapes)
        self.plan = builder.build_serialized_network(self.graph.network, self.settings)
        self.execute = Executor(self.graph.network, self.settings, sm)
        self.inputs = {tensor.name: tensor for tensor in self.graph.network.input_tensors}

    def __call__(self, batch: Batch, seqlen: int | None = None) -> np.ndarray:
        """Return logits (tokens, 2) as a session would."""
        if self.options.layout == "packed":
            given = {"input_ids": batch.ids, "segment_ids": batch.segments, "cu_seqlens": batch.cu_seqlens}
            if "max_seqlen" in self.inputs:
                given["max_seqlen"] = np.zeros(batch.max_seqlen, np.int32)
            logits = self.execute(**given)["logits_out"]
            assert logits.shape == (2, batch.tokens, 1, 1), logits.shape
            return logits[:, :, 0, 0].T
        size = seqlen or self.inputs["input_ids"].shape[1]
        ids, segments, mask = batch.pad(size if size > 0 else batch.max_seqlen)
        logits = self.execute(input_ids=ids, segment_ids=segments, input_mask=mask)["logits_out"]
        assert logits.shape == (*ids.shape, 2, 1, 1), logits.shape
        return batch.unpad(logits[..., 0, 0])
