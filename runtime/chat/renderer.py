"""Where chat templates are rendered: a process that is started when it is needed, and ended when it takes too long."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from runtime.errors import CheckpointError, PromptError
from runtime.model.chat_files import ChatTemplate

_PROGRAM = Path(__file__).with_name("rendering.py")

SECONDS = 10.0
"""For one rendering, the start of the process included."""
LARGEST_TEXT = 2**24
"""Characters of a rendering."""
_AROUND = 4096
"""Bytes of an answer beside its texts."""


class _Answer(msgspec.Struct):
    texts: list[str] = []
    kind: Literal["", "refused", "syntax", "failed", "too large", "memory"] = ""
    error: str = ""
    line: int | None = None


class Renderer:
    """Renders chat templates in a process of its own, one request after the other. Used on the event loop.

    Cancelled, or where a template takes longer than `SECONDS`, the process is killed; the next request starts another.
    """

    def __init__(self, seconds: float = SECONDS, largest_text: int = LARGEST_TEXT) -> None:
        self._seconds = seconds
        self._largest_text = largest_text
        self._lock = anyio.Lock()
        self._process: Process | None = None
        self._answers: BufferedByteReceiveStream | None = None

    async def render(self, template: ChatTemplate, conversations: Sequence[Mapping[str, Any]], now: float) -> list[str]:
        """The text of each conversation, whose variables are what JSON has. `now` is what its clock shows, in seconds
        since 1970.

        Raises `CheckpointError` for a template that is none, and `PromptError` for messages that it refuses or fails
        with, and for one that does not come to its end in bounded time and memory; each names the file and the line.
        """
        request = {
            "template": template.source,
            "conversations": conversations,
            "now": now,
            "most": self._largest_text,
        }
        line = json.dumps(request).encode() + b"\n"
        async with self._lock:
            # A character has at most twelve bytes in JSON.
            most = 12 * self._largest_text * len(conversations) + _AROUND
            answer = msgspec.convert(json.loads(await self._ask(template, line, most)), _Answer)
        if answer.kind:
            raise _error(template, answer, self._largest_text)
        return answer.texts

    async def aclose(self) -> None:
        """Ends the process, if there is one."""
        process, self._process, self._answers = self._process, None, None
        if process is not None:
            with anyio.CancelScope(shield=True):
                process.kill()
                await process.aclose()

    async def _ask(self, template: ChatTemplate, line: bytes, most: int) -> bytes:
        try:
            with anyio.fail_after(self._seconds):
                return await self._exchange(line, most)
        except TimeoutError:
            await self.aclose()
            raise PromptError(
                f"{template.where}: the chat template took longer than {self._seconds:g} s. Shorten the conversation, "
                f"or correct the template."
            ) from None
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self.aclose()
            raise PromptError(
                f"{template.where}: the process that renders the chat template has ended. Correct a template that "
                f"needs too much memory, or try again."
            ) from None
        except BaseException:
            # Its answer would be taken for the next one's.
            await self.aclose()
            raise

    async def _exchange(self, line: bytes, most: int) -> bytes:
        if self._process is None:
            # In a session of its own, so that an interrupt from the keyboard is this process's to handle.
            self._process = await anyio.open_process(
                [sys.executable, "-P", str(_PROGRAM)], stderr=subprocess.DEVNULL, start_new_session=True
            )
            assert self._process.stdout is not None
            self._answers = BufferedByteReceiveStream(self._process.stdout)
        assert self._process.stdin is not None
        assert self._answers is not None
        await self._process.stdin.send(line)
        return await self._answers.receive_until(b"\n", most)


def _error(template: ChatTemplate, answer: _Answer, largest_text: int) -> CheckpointError | PromptError:
    where = template.where if answer.line is None else f"{template.where}, line {answer.line}"
    match answer.kind:
        case "syntax":
            return CheckpointError(f"{where}: the chat template is no Jinja template ({answer.error}).")
        case "refused":
            return PromptError(f"{where}: the chat template refuses these messages: {answer.error}")
        case "too large":
            return PromptError(
                f"{where}: the chat template writes more than {largest_text} characters. Shorten the conversation, or "
                f"correct the template."
            )
        case "memory":
            return PromptError(
                f"{where}: the chat template needs too much memory. Shorten the conversation, or correct the template."
            )
        case _:
            return PromptError(f"{where}: the chat template fails with these messages: {answer.error}")
