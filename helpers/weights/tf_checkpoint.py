# SPDX-License-Identifier: Apache-2.0
"""Weights from a TensorFlow checkpoint, by TensorFlow itself."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from helpers.config import BertConfig
from helpers.errors import InputError, MissingDependency
from helpers.files import is_file
from helpers.weights import Found, Weights, checked

# What training leaves in a checkpoint beside the model: optimizer slots (.../kernel/adam_m, .../kernel/Adam_1), counters, loss
# scaling; and the pooler, unused here.
_SKIPPED = re.compile(r"(^|/)(adamw?|lamb)(optimizer)?(_[mv])?(_\d+)?(/|$)|global_step|pooler|loss_scale|good_steps|beta[12]_power")


def canonical(variable: str) -> str | None:
    """Return the project's name of a variable, None for those that are skipped.

    bert/encoder/layer_7/attention/self/query/kernel -> l7_attention_self_query_kernel
    """
    name = variable.lower()
    if _SKIPPED.search(name):
        return None
    parts = name.split("/")
    match = re.search(r"\d+", name)
    if "encoder" in parts and match:
        return f"l{match[0]}_" + "_".join(parts[3:])
    return "_".join(parts)


def read(config: BertConfig, prefix: str | Path) -> Weights:
    """Return the weights of a checkpoint, given without .index or .data; FP32, FP16 or BF16.

    Kernels are (in, out) in the file and transposed here. Raises InputError for a missing, corrupt or unfitting checkpoint and
    MissingDependency without TensorFlow.
    """
    prefix = str(prefix).removesuffix(".index")
    if not is_file(f"{prefix}.index", "TensorFlow checkpoint"):
        raise InputError(f"there is no TensorFlow checkpoint {prefix} ({prefix}.index does not exist); correct -m/--ckpt")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise MissingDependency(
            f"reading TensorFlow checkpoints needs the tensorflow package ({error}); pip install tensorflow"
        ) from error
    found = Found(f"TensorFlow checkpoint {prefix}")
    try:
        reader = tf.train.load_checkpoint(prefix)
        for variable in sorted(reader.get_variable_to_shape_map()):
            name = canonical(variable)
            if name is None:
                continue
            array = np.asarray(reader.get_tensor(variable))
            found.add(name, variable, array.T if name.endswith("_kernel") else array)
    except InputError:
        raise
    except Exception as error:  # tf.errors has a class for each way a file can be damaged
        raise InputError(
            f"{found.source} cannot be read ({str(error).splitlines()[0]}); copy it again, all of its files"
        ) from error
    return checked(config, found.tensors, {}, found.source)
