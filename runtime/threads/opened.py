"""What an opened model brings: made where one is opened, and handed on whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import anyio.to_thread
from msgspec import Meta

from policies import Policy
from policies.conversion import Count, converted
from runtime.link.commands import Device
from runtime.link.sampling import Sampling
from runtime.model.chat_files import ChatTemplates
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import AnyProtocol
from runtime.threads.recorded_mail import RecordedMail
from runtime.threads.recorded_spawns import RecordedSpawns


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A device that has not been started, and what comes with it.

    Raises `ValueError`, naming the field, for stop tokens and bounds that are none.
    """

    device: Device
    tokenizer: Tokenizer | None = None
    """None: prompts are token ids, and texts are empty."""
    chat_templates: ChatTemplates | None = None
    """None: there are prompts alone, and no messages."""
    protocol: AnyProtocol | None = None
    """None: threads that the model drives generate to a stop token."""
    policy: Policy | None = None
    """The checkpoint's own."""
    sampling: Sampling = field(default_factory=Sampling)
    """What holds where callers say nothing."""
    max_tokens: int | None = None
    """Most tokens of a generate that is given no bound; None is as many as there is context."""
    stop_tokens: frozenset[int] = frozenset()
    max_context: int | None = None
    """Most tokens of a thread's context."""
    vocab_size: int | None = None
    """Token ids are below it."""
    answers_tools: bool = False
    """Whether the device answers calls of tools, as it does where it plays back what was recorded; none is run then."""
    latent_width: int | None = None
    """Numbers of a latent state; None where there is none to look at."""
    fingerprint: Callable[[], str] | None = None
    """Of the model's weights as they are; for a device that has not been started, or has stopped."""
    recorded_mail: RecordedMail | None = None
    """What threads sent each other when the trace was recorded that the device plays back."""
    recorded_spawns: RecordedSpawns | None = None
    """Likewise, which of the children ran that models asked for."""
    lanes: int | None = None
    """Most tokens that the device has in flight; None where nobody knows."""
    ready: Callable[[], None] | None = None
    """Waits, on a worker thread, until the device that was started can serve, or raises what keeps it from that."""
    close: Callable[[], None] | None = None
    """Gives back what the device has not: called when it has stopped, or is never started."""

    def __post_init__(self) -> None:
        plain = {
            "stop_tokens": frozenset[Annotated[int, Meta(ge=0)]],
            "max_tokens": Count | None,
            "max_context": Count | None,
            "vocab_size": Count | None,
            "latent_width": Count | None,
        }
        for name, hint in plain.items():
            object.__setattr__(self, name, converted(getattr(self, name), hint, name))

    async def stop(self) -> None:
        """Ends the device, and gives back what it has not."""
        await anyio.to_thread.run_sync(self.device.stop)
        if self.close is not None:
            await anyio.to_thread.run_sync(self.close)
