# SPDX-License-Identifier: Apache-2.0
"""Write the PyTorch files of the tests, with PyTorch, which the tests themselves do without. Run from the repository's root:

python tests/data/make_torch_files.py
"""

import argparse
import pickle
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

from helpers.weights import random_weights  # noqa: E402
from names import TINY, huggingface_names  # noqa: E402

tensors = {name: torch.from_numpy(array) for name, array in huggingface_names(TINY, random_weights.make(TINY, 5).tensors).items()}
torch.save({"model": tensors}, HERE / "tiny.pt")
torch.save({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, HERE / "tiny_bfloat16.bin")
torch.save(torch.nn.ParameterDict({}).state_dict() | tensors, HERE / "tiny_legacy.bin", _use_new_zipfile_serialization=False)
transposed = {name: (tensor.t().contiguous().t() if tensor.ndim == 2 else tensor.half()) for name, tensor in tensors.items()}
(HERE / "tiny_tensors.pkl").write_bytes(pickle.dumps(transposed))
torch.save({"model": tensors, "arguments": argparse.Namespace(lr=1)}, HERE / "tiny_with_objects.pt")
