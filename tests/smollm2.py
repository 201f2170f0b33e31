"""What transformers makes of five conversations with SmolLM2-135M-Instruct, read from the same GGUF file.

`python -m tests.smollm2` writes it to tests/golden/smollm2.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.summary import smollm2

EXPECTED = Path(__file__).parent / "golden" / "smollm2.json"

NEW = 24
"""Tokens of an answer, at most."""

QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Was ist größer, der Mond oder die Sonne? Äpfel, Öl, 日本 🧵",
    "Count from one to five.",
    "def add(a, b):\n    # what is missing here?",
)


class Exchange(msgspec.Struct, frozen=True):
    question: str
    prompt: tuple[int, ...]
    """The conversation as the chat template writes it."""
    answer: tuple[int, ...]
    """Greedy tokens in float32, with the one that ends them if there is one."""
    text: str
    """Theirs, without that one."""


def exchanges(path: Path) -> list[Exchange]:
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, **where)
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, **where, dtype=torch.float32)
    found = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        whole = model.generate(**given, max_new_tokens=NEW, do_sample=False)[0].tolist()
        length = given["input_ids"].shape[1]
        prompt, answer = tuple(whole[:length]), tuple(whole[length:])
        text = tokenizer.decode(answer, skip_special_tokens=True)
        found.append(Exchange(question, prompt, answer, text))
    return found


if __name__ == "__main__":
    EXPECTED.write_bytes(msgspec.json.format(msgspec.json.encode(exchanges(smollm2())), indent=1) + b"\n")
