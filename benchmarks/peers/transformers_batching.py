"""Hugging Face transformers, continuous batching: `model.generate_batch`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.peers.answering import Answered, Job, Loaded, serve

if TYPE_CHECKING:
    from transformers import ContinuousBatchingConfig


@contextmanager
def load(job: Job) -> Iterator[Loaded]:
    import torch
    import transformers

    if not hasattr(transformers, "ContinuousBatchingConfig"):
        raise ImportError(f"transformers {transformers.__version__} has no ContinuousBatchingConfig")
    torch.set_num_threads(job.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job.checkpoint, dtype=getattr(torch, job.dtype), local_files_only=True
    )
    config = transformers.GenerationConfig.from_dict(
        {"max_new_tokens": job.tokens, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    )
    sized_for = 0

    def answer(prompts: list[list[int]]) -> Answered:
        nonlocal sized_for
        if len(prompts) != sized_for:
            # The manager that is kept from call to call has memory for the requests of its first.
            model.destroy_cached_continuous_batching_manager()
            sized_for = len(prompts)
        made = model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=_sizes(job, sized_for),
            persistent_manager=True,
        )
        if errors := [output.error for output in made.values() if output.error]:
            raise RuntimeError(f"generate_batch failed: {errors[0]}")
        return Answered([list(output.generated_tokens) for output in made.values()], [])

    versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
    yield Loaded(answer=answer, versions=versions)
    model.destroy_cached_continuous_batching_manager()


def _sizes(job: Job, batch: int) -> ContinuousBatchingConfig:
    """Room for all prompts at once; what it would choose by itself is sized for a GPU, and slow to set up."""
    from transformers import ContinuousBatchingConfig

    page = 256
    return ContinuousBatchingConfig(
        page_size=page,
        num_blocks=batch * -(-(job.prompt + job.tokens) // page) + 1,
        max_batch_tokens=batch * job.prompt,
        max_requests_per_batch=batch,
        allow_block_sharing=False,
        # Flash attention would be fetched from a hub.
        auto_switch_to_flash=False,
    )


if __name__ == "__main__":
    serve(load)
