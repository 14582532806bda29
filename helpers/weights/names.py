# SPDX-License-Identifier: Apache-2.0
"""The one set of parameter names that every weight reader delivers and every backend consumes.

Matrices are (out, in), as PyTorch stores them. Activation and weight ranges (amax) have names of their own, below.
"""

from __future__ import annotations

from helpers.config import BertConfig

WORD_EMBEDDINGS = "bert_embeddings_word_embeddings"
TOKEN_TYPE_EMBEDDINGS = "bert_embeddings_token_type_embeddings"
POSITION_EMBEDDINGS = "bert_embeddings_position_embeddings"
HEAD_KERNEL = "cls_squad_output_weights"
HEAD_BIAS = "cls_squad_output_bias"
FINAL_RANGE = "bert_encoder_final_input_quantizer_amax"

# The matrix products of one encoder layer, in order of execution.
PRODUCTS = (
    "attention_self_query",
    "attention_self_key",
    "attention_self_value",
    "attention_output_dense",
    "intermediate_dense",
    "output_dense",
)


def expected_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a model, by name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        WORD_EMBEDDINGS: (config.vocab_size, hidden),
        TOKEN_TYPE_EMBEDDINGS: (config.type_vocab_size, hidden),
        POSITION_EMBEDDINGS: (config.max_position_embeddings, hidden),
        "bert_embeddings_layernorm_gamma": (hidden,),
        "bert_embeddings_layernorm_beta": (hidden,),
        HEAD_KERNEL: (2, hidden),
        HEAD_BIAS: (2,),
    }
    sizes = {"intermediate_dense": (inner, hidden), "output_dense": (hidden, inner)}
    for layer in range(config.num_hidden_layers):
        for product in PRODUCTS:
            out, inn = sizes.get(product, (hidden, hidden))
            shapes[f"l{layer}_{product}_kernel"] = (out, inn)
            shapes[f"l{layer}_{product}_bias"] = (out,)
        for norm in ("attention_output_layernorm", "output_layernorm"):
            shapes[f"l{layer}_{norm}_gamma"] = (hidden,)
            shapes[f"l{layer}_{norm}_beta"] = (hidden,)
    return shapes


def activation_ranges(config: BertConfig) -> list[str]:
    """Return the names of the activation ranges a fully quantised model has, in order of execution."""
    per_layer = (
        "attention_self_query_input_amax",  # the layer's input; key and value read the same tensor
        "attention_self_key_input_amax",
        "attention_self_value_input_amax",
        "attention_self_qv_a_input_quantizer_amax",  # query, as an operand of query x key
        "attention_self_qv_b_input_quantizer_amax",  # key
        "attention_self_av_b_input_quantizer_amax",  # value
        "attention_self_av_a_input_quantizer_amax",  # softmax output
        "attention_output_dense_input_amax",  # context
        "attention_output_add_local_input_quantizer_amax",  # attention output product
        "attention_output_add_residual_input_quantizer_amax",  # the layer's input, as a residual
        "intermediate_dense_input_amax",  # first layer norm
        "output_dense_input_amax",  # GELU
        "output_add_local_input_quantizer_amax",  # second feed-forward product
        "output_add_residual_input_quantizer_amax",  # first layer norm, as a residual
    )
    return [f"l{layer}_{name}" for layer in range(config.num_hidden_layers) for name in per_layer] + [FINAL_RANGE]
