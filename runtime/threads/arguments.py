"""Arguments of calls: made plain, or refused by name with a `ValueError`, before anything is sent to the device.

Each struct has the arguments of one kind of call and converts them when it is made; see `policies.conversion`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import msgspec
from msgspec import Meta

from policies import DepthPolicy, Limits, Policy
from policies.conversion import Count, Whole, convert_fields, converted, plain, shown
from runtime.errors import PromptError, no_token
from runtime.link.event_values import check_recordable
from runtime.link.events import Event
from runtime.link.latents import Latents
from runtime.link.sampling import Sampling
from runtime.threads.results import Answer
from runtime.threads.tools import Tools

if TYPE_CHECKING:
    from torch import Tensor


LARGEST_ID = 2**31 - 1
"""Token ids travel as 32-bit integers."""


class _Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all: fields are named as the arguments are."""

    def __post_init__(self) -> None:
        convert_fields(self)


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineArguments` as keywords of a call, so that editors and type checkers know them."""

    policy: Policy | None
    limits: Limits | None
    sampling: Sampling | None
    seed: int
    queue_size: int
    records: bool
    observer: Callable[[Event], None] | None


class EngineArguments(_Arguments, frozen=True, kw_only=True):
    """Of `Engine`."""

    policy: Policy | None = None
    limits: Limits | None = None
    sampling: Sampling | None = None
    seed: Whole = 0
    queue_size: Count = 4096
    records: bool = False
    observer: Callable[[Event], None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.records and self.policy is not None:
            check_recordable(self.policy.depth)
            check_recordable(self.policy.spawn)


class ThreadArguments(_Arguments, frozen=True, kw_only=True):
    """Of `Engine.thread`, `Engine.run`, `ReasoningThread.spawn` and `fork`; None is what would hold anyway."""

    policy: Policy | None = None
    depth: DepthPolicy | None = None
    limits: Limits | None = None
    sampling: Sampling | None = None
    max_tokens: Count | None = None
    priority: Whole | None = None
    parse_special_tokens: bool | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    tools: Tools | Sequence[str] | None = None
    program: Callable[[Any], Awaitable[Any]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.chat_template_kwargs, Mapping):
            given = _json_like(self.chat_template_kwargs, "chat_template_kwargs")
            if own := sorted({"messages", "add_generation_prompt"} & given.keys()):
                raise ValueError(f"chat_template_kwargs has {own[0]}, which follows from the messages; leave it out.")
            msgspec.structs.force_setattr(self, "chat_template_kwargs", given)
        if isinstance(self.tools, str):
            raise ValueError(f"tools is the string {shown(self.tools)}; give a list of names.")
        convert_fields(self)


class GenerateArguments(_Arguments, frozen=True, kw_only=True):
    """Of `ReasoningThread.generate` and `stream`."""

    max_tokens: Count | None = None
    stop: tuple[str | Whole, ...] = ()
    sampling: Sampling | None = None
    depth: DepthPolicy | None = None
    nowait: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise ValueError(f"stop is the string {shown(self.stop)}; give a list of strings and token ids.")
        convert_fields(self)
        if "" in self.stop:
            raise ValueError("stop has an empty string, which would stop at once; leave it out.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(item for item in self.stop if isinstance(item, str))

    @property
    def stop_tokens(self) -> frozenset[int]:
        """What is in no vocabulary stops nothing."""
        return frozenset(item for item in self.stop if isinstance(item, int))


class ScoreArguments(_Arguments, frozen=True, kw_only=True):
    """Of `ReasoningThread.score`."""

    top: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    depth: DepthPolicy | None = None
    nowait: bool = False
    parse_special_tokens: bool | None = None


class JoinArguments(_Arguments, frozen=True, kw_only=True):
    """Of `ReasoningThread.join`."""

    append: bool = True
    merge: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge and not self.append:
            raise ValueError("merge=True appends what children have; leave append=False out.")


class FirstArguments(_Arguments, frozen=True, kw_only=True):
    """Of `ReasoningThread.first`."""

    append: bool = True
    accept: Callable[[Answer], bool] | None = None


def is_chat(value: object) -> bool:
    """Whether something to append is one message or several, not text or token ids."""
    if isinstance(value, str):
        return False
    return isinstance(value, Mapping) or (
        isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Mapping)
    )


def messages_of(value: object, name: str = "messages") -> tuple[dict[str, Any], ...]:
    """The messages of a sequence, or one alone, as JSON has them. Raises `PromptError`, beginning with `name`, where
    there are none, and for what is no message."""
    given = [value] if isinstance(value, Mapping) else value
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise PromptError(f"{name} is {shown(value)}; give a list of mappings with role and content.")
    if not given:
        raise PromptError(f"{name} is empty; give at least one mapping with role and content.")
    messages = []
    for index, message in enumerate(given):
        where = name if given is not value else f"{name}[{index}]"
        if not isinstance(message, Mapping):
            raise PromptError(f"{where} is {shown(message)}; give a mapping with role and content.")
        if not isinstance(message.get("role"), str):
            raise PromptError(f"{where} has no role that is a string; give one, such as 'user'.")
        try:
            messages.append(_json_like(message, where))
        except ValueError as error:
            raise PromptError(str(error)) from None
    return tuple(messages)


def _json_like(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy with what JSON has, and nothing else. Raises `ValueError`, beginning with `name`, for other values."""
    try:
        made: dict[str, Any] = msgspec.to_builtins(value, enc_hook=_plain_value)
    except Exception as error:
        raise ValueError(
            f"{name} has a value that JSON has not ({shown(str(error))}); give text and numbers."
        ) from None
    if strange := [key for key in made if not isinstance(key, str)]:
        raise ValueError(f"{name} has the key {shown(strange[0])}; keys are strings.")
    return made


def _plain_value(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    made = plain(value)
    if made is value:
        raise TypeError(f"{type(value).__name__} is none")
    return made


@cache
def _ids_below(vocab_size: int | None) -> Any:
    return tuple[Annotated[int, Meta(ge=0, lt=LARGEST_ID if vocab_size is None else vocab_size)], ...]


def token_ids(value: object, vocab_size: int | None, name: str) -> tuple[int, ...]:
    """Token ids from a sequence, an array or a tensor [n] of integers. Raises `PromptError`, beginning with `name`,
    for anything else, and for ids outside the vocabulary."""
    try:
        tokens: tuple[int, ...] = converted(value, _ids_below(vocab_size), name)
    except ValueError as error:
        ids = LARGEST_ID if vocab_size is None else vocab_size
        raise no_token(str(error).rstrip("."), ids) from None
    return tokens


def latents_of(value: object, name: str) -> Latents | None:
    """Raises `ValueError`, naming the argument, for what says nothing of latent states."""
    if value is not None and not isinstance(value, Latents):
        raise ValueError(f"{name} is {shown(value)}; give a Latents, such as Latents(dimensions=64).")
    return value


def path_of(value: object, name: str) -> Path:
    """A path from text or a path-like object, "~" expanded. Raises `ValueError` for what can be none."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else converted(value, str, name)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{name} is {shown(value)}; give the path of a file.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} is {shown(value)}: {error}".rstrip(".") + ".") from None


def checkpoint_of(value: object, name: str = "checkpoint") -> str | Path:
    """A checkpoint's name or path. Raises `ValueError`, beginning with `name`, for what can be neither."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{name} is {shown(value)}; give the name of one that comes along, or a directory.")
    return text if text is value else Path(text)


def weights_of(value: object) -> dict[str, Tensor]:
    """The tensors of a mapping by name, which is copied and they are not."""
    # An engine over another device does without.
    import torch

    if not isinstance(value, Mapping):
        raise ValueError(f"weights is {shown(value)}; give a mapping from names to tensors.")
    weights = dict(value)
    for name, tensor in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"weights has the key {shown(name)}; keys are parameters' published names.")
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name} is {type(tensor).__name__} in the weights; give a floating-point tensor.")
    return weights
