"""Llama (arXiv 2302.13971), and whatever transformers runs as one: its `LlamaForCausalLM`."""

from __future__ import annotations

from runtime.model.families.causal import CausalFamily
from runtime.model.families.causal_sizes import biases

LLAMA = CausalFamily(
    model_type="llama",
    architecture="LlamaForCausalLM",
    supported={"hidden_act": "silu"},
    describe=lambda path, values, sizes: biases(path, values),
)
