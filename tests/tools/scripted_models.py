"""Checkpoints whose weights make them say scripts: what follows is decided by the last token of a context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.protocol.test_apr_engine import EOS, save_scripted, tokenizer_and_successors

CHAT = """\
{%- if tools %}{{- 'Tools in <tool_call>: ' + (tools | tojson) }}{% endif %}
{%- for message in messages %}{{- '[' + message.role + ']' + message.content }}{% endfor %}
{%- if add_generation_prompt %}{{- '[results]' if messages[-1].role == 'tool' else '[assistant]' }}{% endif %}
"""
"""A template after which a model can see whether it has called tools."""


def save_model(
    directory: Path,
    scripts: Mapping[str, str],
    *,
    protocol: Mapping[str, Any] | None = None,
    chat: str = "",
    instead: Mapping[str, str] | None = None,
) -> None:
    """A Qwen2 that says a script where its context ends with a key, and then its end; behind some keys that of others
    `instead`, with the same tokens."""
    tokenizer, successors = tokenizer_and_successors(scripts)
    ids = {key: tokenizer.encode(key)[0] for key in scripts}
    successors |= {ids[key]: successors[ids[other]] for key, other in (instead or {}).items()}
    torch.manual_seed(0)
    config = Qwen2Config(
        # Tokens of the family's own are added.
        vocab_size=tokenizer.vocab_size + 8,
        hidden_size=-(-tokenizer.vocab_size // 16) * 16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.token_to_id(EOS),
        tie_word_embeddings=False,
        initializer_range=0.002,
    )
    save_scripted(directory, Qwen2ForCausalLM(config), tokenizer, successors)
    if protocol is not None:
        (directory / "braid.json").write_text(json.dumps({"protocol": protocol}))
    if chat:
        (directory / "chat_template.jinja").write_text(chat)
