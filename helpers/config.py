# SPDX-License-Identifier: Apache-2.0
"""The two descriptions every backend builds from: the model (BertConfig) and the engine wanted (BuildOptions)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from helpers.errors import InputError, UsageError
from helpers.files import is_file, read_json

Layout = Literal["padded", "packed"]
Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8"]

# hidden_act values of the two worlds. Google's bert_config.json calls the tanh form "gelu";
# Hugging Face's config.json calls the erf form "gelu" and the tanh form "gelu_new".
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_tanh": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_erf": "gelu_erf"}

_LARGEST_SIZE = 2**31 - 1  # ids and shapes are 32-bit


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT encoder, with the names of bert_config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    activation: str = "gelu_tanh"  # or "gelu_erf"

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in asdict(self).items() if name not in ("layer_norm_eps", "activation")}
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST_SIZE:
                raise InputError(
                    f"the model configuration has {name} = {value!r}; it must be a whole number from 1 to {_LARGEST_SIZE}"
                )
        eps = self.layer_norm_eps
        if not isinstance(eps, float) or not 0 < eps < 1:  # false for NaN too
            raise InputError(f"the model configuration has layer_norm_eps = {eps!r}; it must be a number above 0 and below 1")
        if self.type_vocab_size < 2:
            raise InputError(
                f"the model configuration has type_vocab_size {self.type_vocab_size}, but question answering needs two segment "
                "types, the question's and the passage's; give a model that has them"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"the model configuration has hidden_size {self.hidden_size}, which {self.num_attention_heads} attention heads "
                "cannot share evenly; correct bert_config.json"
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "the model configuration", huggingface: bool = False) -> BertConfig:
        """Return the config of a parsed JSON object; raise InputError for missing keys and other model types."""
        model_type = values.get("model_type", "bert")
        if model_type != "bert":
            raise InputError(f"{where} describes a {model_type!r} model; only BERT (model_type 'bert') is supported")
        required = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        missing = [name for name in required if name not in values]
        if missing:
            raise InputError(f"{where} lacks {', '.join(missing)}; give the bert_config.json that belongs to the checkpoint")
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        act = values.get("activation", values.get("hidden_act", "gelu"))
        if act == "gelu":
            known["activation"] = "gelu_erf" if huggingface else "gelu_tanh"
        elif isinstance(act, str) and act in _ACTIVATIONS:
            known["activation"] = _ACTIVATIONS[act]
        else:
            raise InputError(
                f"{where} has hidden_act {act!r}; only the GELU forms gelu, gelu_new and gelu_pytorch_tanh are supported"
            )
        return cls(**known)

    @classmethod
    def from_dir(cls, directory: str | Path) -> BertConfig:
        """Read `bert_config.json`, or a Hugging Face `config.json`, of a directory."""
        directory = Path(directory)
        for name in ("bert_config.json", "config.json"):
            path = directory / name
            if is_file(path, "model configuration"):
                values = read_json(path, "model configuration")
                if not isinstance(values, dict):
                    raise InputError(f"{path} holds no JSON object; give the bert_config.json that belongs to the checkpoint")
                return cls.from_dict(values, str(path), huggingface=name == "config.json")
        raise InputError(f"no bert_config.json (or config.json) in {directory}; give its directory with -c/--config-dir")


@dataclass(frozen=True)
class BuildOptions:
    """What the builder was asked for, the same for every backend."""

    output: Path
    layout: Layout = "padded"
    fp16: bool = False
    bf16: bool = False
    int8: bool = False
    fp8: bool = False
    batch_sizes: tuple[int, ...] = (1,)
    sequence_lengths: tuple[int, ...] = (128,)
    # The rest steers single backends: STEERING of helpers.backends says which, and what happens elsewhere.
    strict: bool = False
    workspace_mib: int | None = None
    interleaved: bool = False
    megatron: bool = False
    sparse: bool = False
    force_fc2_gemm: bool = False
    force_int8_skipln: bool = False
    force_int8_multihead: bool = False
    timing_cache: Path | None = None
    distributive_independence: bool = False
    verbose: bool = False
    v3_plugins: bool = False
    no_plugins: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> Precision:
        """The narrowest arithmetic allowed: fp8, int8, fp16, bf16 or fp32."""
        for name in ("fp8", "int8", "fp16", "bf16"):
            if getattr(self, name):
                return name  # type: ignore[return-value]
        return "fp32"

    def check(self, config: BertConfig) -> None:
        """Raise UsageError where sizes contradict each other or the model."""
        for name, values in (("-b/--batch-size", self.batch_sizes), ("-s/--sequence-length", self.sequence_lengths)):
            if not values or min(values) < 1:
                raise UsageError(f"{name} {' '.join(map(str, values))} is not possible; give whole numbers of at least 1")
        longest = max(self.sequence_lengths)
        if longest > config.max_position_embeddings:
            raise UsageError(
                f"sequence length {longest} is longer than the model's {config.max_position_embeddings} positions; "
                f"give -s {config.max_position_embeddings} or less"
            )
        if self.int8 and self.fp8:
            raise UsageError("--int8 and --fp8 exclude each other; give one of them")
