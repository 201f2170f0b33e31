"""vLLM's CPU build: continuous batching with chunked prefill and compiled models, as it is set up by default."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from benchmarks.peers.answering import Answered, Job, Loaded, processors, serve


@contextmanager
def load(job: Job) -> Iterator[Loaded]:
    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, processors(job.threads))),
        VLLM_CPU_KVCACHE_SPACE=str(max(1, job.kv_cache_bytes >> 30)),
        # The scheduler in this process rather than in one of its own: faster, on few processors.
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CACHE_ROOT=f"{job.scratch}/vllm",
        VLLM_NO_USAGE_STATS="1",
    )
    vllm = importlib.import_module("vllm")
    model = vllm.LLM(
        model=job.checkpoint,
        dtype=job.dtype,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=job.prompt + job.tokens,
        max_num_seqs=job.batch,
        max_num_batched_tokens=max(job.batch * job.prompt, job.prompt + job.tokens),
    )
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=job.tokens, ignore_eos=True, detokenize=False)

    def answer(prompts: list[list[int]]) -> Answered:
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        made = model.generate(given, sampling, use_tqdm=False)
        return Answered([list(output.outputs[0].token_ids) for output in made], [])

    yield Loaded(answer=answer, versions={"vllm": _version(), "torch": version("torch")})


def _version() -> str:
    """The CPU build is another distribution on the package index."""
    try:
        return version("vllm-cpu")
    except PackageNotFoundError:
        return version("vllm")


if __name__ == "__main__":
    serve(load)
