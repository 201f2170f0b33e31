"""The reference implementation of Huginn: batched generation with adaptive compute, exits on latent differences.

Its batch iterates until its last sequence has exited, and all of it keeps keys and values of every iteration done; so
what a sequence says depends on the others. Tokens to compare with are therefore made prompt by prompt, and with the
cache lookup that does not drop tokens of fewer iterations ("latest-m4"; the default, which is timed, is faster).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from benchmarks.peers.answering import Answered, Job, Loaded, serve


@contextmanager
def load(job: Job) -> Iterator[Loaded]:
    import torch

    if job.clone is None or job.exits is None:
        raise ValueError("The reference Huginn code needs a clone and exits.")
    torch.set_num_threads(job.threads)
    modeling = _modeling(Path(job.clone))
    model = modeling.RavenForCausalLM.from_pretrained(
        job.checkpoint, torch_dtype=getattr(torch, job.dtype), local_files_only=True
    ).eval()
    if model.specification.mean_recurrence != job.exits.most:
        raise ValueError(
            f"The bound on iterations is the model's mean recurrence, {model.specification.mean_recurrence}."
        )
    exits = {"criterion": "latent-diff", "exit_threshold": job.exits.threshold}

    @torch.inference_mode()
    def answer(prompts: list[list[int]], lookup: str = "full") -> Answered:
        tokens = torch.tensor(prompts)
        made = model.generate_with_adaptive_compute(
            tokens, max_new_tokens=job.tokens, cache_lookup_strategy=lookup, **exits
        )
        return Answered(made[:, tokens.shape[1] :].tolist(), [])

    def check(prompts: list[list[int]]) -> Answered:
        return Answered([answer([prompt], "latest-m4").tokens[0] for prompt in prompts], [])

    versions = {"transformers": version("transformers"), "torch": str(torch.__version__)}
    yield Loaded(answer=answer, check=check, versions=versions)


def _modeling(clone: Path) -> ModuleType:
    """The module of the model alone; the package around it imports what training needs."""
    directory = clone / "recpre"
    if not (directory / "raven_modeling_minimal.py").is_file():
        raise ImportError(f"no recpre/raven_modeling_minimal.py in {clone}")
    package = ModuleType("huginn_reference_code")
    package.__path__ = [str(directory)]
    sys.modules[package.__name__] = package
    return importlib.import_module("huginn_reference_code.raven_modeling_minimal")


if __name__ == "__main__":
    serve(load)
