"""Hugging Face transformers, `model.generate` over the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.peers.answering import Answered, Job, Loaded, serve


@contextmanager
def load(job: Job) -> Iterator[Loaded]:
    import torch
    import transformers

    torch.set_num_threads(job.threads)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job.checkpoint, dtype=getattr(torch, job.dtype), local_files_only=True
    )
    config = transformers.GenerationConfig.from_dict(
        {"max_new_tokens": job.tokens, "do_sample": False, "pad_token_id": 0}
    )

    @torch.inference_mode()
    def answer(prompts: list[list[int]]) -> Answered:
        tokens = torch.tensor(prompts)
        made = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)
        return Answered(made[:, tokens.shape[1] :].tolist(), [])

    versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
    yield Loaded(answer=answer, versions=versions)


if __name__ == "__main__":
    serve(load)
