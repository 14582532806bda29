# SPDX-License-Identifier: Apache-2.0
"""Made-up weights for benchmarks and tests, drawn as BERT is initialised; the same seed gives the same model."""

from __future__ import annotations

import numpy as np

from helpers.config import BertConfig
from helpers.errors import InputError
from helpers.weights import Weights
from helpers.weights.names import expected_shapes

DEVIATION = 0.02  # initializer_range of every published bert_config.json


def make(config: BertConfig, seed: int) -> Weights:
    """Return weights of N(0, 0.02); layer norms start at gamma 1 and beta 0 with a little noise, so that no term goes untested."""
    tensors = {}
    for number, (name, shape) in enumerate(expected_shapes(config).items()):
        random = np.random.Generator(np.random.PCG64([seed, number]))
        try:
            array = random.standard_normal(shape, dtype=np.float32) * np.float32(DEVIATION)
        except (MemoryError, ValueError) as error:  # more than there is, more than an array can have
            raise InputError(f"{name} {shape} does not fit into memory; give a smaller model configuration") from error
        tensors[name] = array + 1 if name.endswith("_gamma") else array
    return Weights(tensors, {}, f"random weights of seed {seed}")
