"""What clients ask for: bodies of requests, held against what there is, and made into jobs for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from policies import DepthPolicy, Fixed, Limits, MaxChildren, SpawnPolicy, from_builtins
from policies.conversion import shown
from runtime.link.constraints import Constraint
from runtime.link.sampling import Sampling
from runtime.serve.constrained import Constrained
from runtime.serve.refusals import Refusal
from runtime.serve.settings import ServerSettings, within

Id = Annotated[int, Meta(ge=0, lt=2**31)]
Few = Annotated[int, Meta(ge=1, le=2**20)]
Prompt = str | tuple[int, ...]

COMPLETION_TOKENS = 16
"""Most tokens of a completion whose request does not say, as OpenAI has it."""


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class Body(Constrained, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of requests have: OpenAI's fields, those that vLLM and others have beside them, and Braid's."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Few | None = None
    max_tokens: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Id] = msgspec.field(default_factory=list)
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    # Whom it is for, which changes nothing here.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # What there is not, but for the values that ask for nothing.
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # Braid's own.
    depth: Any = None
    """A depth policy as objects, or a number of iterations for every token."""
    spawn: Any = None
    """A spawn policy as objects, or how many children a join may have; the model then orchestrates."""
    limits: dict[str, Any] | None = None
    priority: int = 0
    deadline: Annotated[float, Meta(gt=0)] | None = None
    """Seconds."""
    tree: bool = False
    """Whether the model orchestrates, and what its threads do is told."""


class CompletionBody(Body, kw_only=True, forbid_unknown_fields=True):
    """Of /v1/completions."""

    prompt: str | list[str | Id | list[Id]]
    echo: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None
    best_of: int | None = None
    suffix: str | None = None


class ChatBody(Body, kw_only=True, forbid_unknown_fields=True):
    """Of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=100)] | None = None
    max_completion_tokens: Few | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None


B = TypeVar("B", bound=Body)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, for the engine."""

    kind: Literal["completion", "chat"]
    prompts: tuple[Prompt, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    """Instead of prompts."""
    n: int
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str | int, ...]
    constraint: Constraint | None
    """What each answer must be."""
    depth: DepthPolicy | None
    spawn: SpawnPolicy | None
    limits: Limits
    priority: int
    is_tree: bool
    """Whether the model orchestrates."""
    tells_tree: bool
    echo: bool = False
    logprobs: int | None = None
    """How many of the likeliest tokens are reported in the place of each; None where not even its own is."""
    tells_ids: bool
    ids_as_text: bool
    """Whether tokens are told as "token_id:5" in place of their texts, where they have log-probabilities."""
    stream: bool
    tells_usage: bool
    """In a stream; answers that are no streams have it in any case."""
    template_variables: Mapping[str, Any] | None = None

    @property
    def choices(self) -> int:
        return self.n * (len(self.prompts) or 1)


def completion_job(body: bytes, settings: ServerSettings) -> Job:
    """Raises `Refusal` for what is no request that this server answers."""
    asked = _read(body, CompletionBody)
    if asked.best_of not in (None, asked.n or 1):
        raise _unknown("best_of", "choose among n answers yourself")
    if asked.suffix:
        raise _unknown("suffix", "the model goes on after a prompt only")
    prompts = _prompts(asked.prompt)
    job = _job(
        asked,
        settings,
        "completion",
        prompts=prompts,
        max_tokens=COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens,
        echo=asked.echo,
        logprobs=asked.logprobs,
    )
    if job.is_tree and (job.echo or job.logprobs is not None):
        raise Refusal(400, "A tree has no echo and no logprobs; leave them out, or tree and spawn.", param="tree")
    if job.max_tokens == 0 and not job.echo:
        raise Refusal(400, "max_tokens is 0, which asks for nothing without echo.", param="max_tokens")
    return job


def chat_job(body: bytes, settings: ServerSettings) -> Job:
    """Raises like `completion_job`."""
    asked = _read(body, ChatBody)
    if asked.tools or asked.tool_choice not in (None, "none", "auto"):
        raise _unknown("tools", "give chat_template_kwargs={'tools': [...]}, and read calls out of the text")
    if asked.max_tokens == 0:
        raise Refusal(400, "max_tokens is 0, which asks for nothing.", param="max_tokens")
    if not asked.messages:
        raise Refusal(400, "messages is empty; give at least one.", param="messages")
    if not asked.logprobs and asked.top_logprobs:
        raise Refusal(400, "top_logprobs is given without logprobs; give both.", param="top_logprobs")
    job = _job(
        asked,
        settings,
        "chat",
        messages=tuple(asked.messages),
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        template_variables=asked.chat_template_kwargs,
    )
    if job.is_tree and job.logprobs is not None:
        raise Refusal(400, "A tree has no logprobs; leave them out, or tree and spawn.", param="tree")
    return job


def _read(body: bytes, kind: type[B]) -> B:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(400, f"The request does not fit: {error}.", param=_named_in(str(error))) from None
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise Refusal(400, f"The body is no JSON: {error}.") from None


def _named_in(message: str) -> str | None:
    _, found, path = message.partition("`$.")
    return path.split("`")[0].split("[")[0] if found else None


def _prompts(given: str | list[str | int | list[int]]) -> tuple[Prompt, ...]:
    if isinstance(given, str):
        return (given,)
    if not given:
        raise Refusal(400, "prompt is empty; give a text, token ids, or a list of them.", param="prompt")
    ids = tuple(each for each in given if isinstance(each, int))
    if len(ids) == len(given):
        return (ids,)
    if ids:
        raise Refusal(400, "prompt has token ids beside other prompts; give a list of lists.", param="prompt")
    return tuple(each if isinstance(each, str) else tuple(each) for each in given if not isinstance(each, int))


def _job(asked: Body, settings: ServerSettings, kind: Literal["completion", "chat"], **own: Any) -> Job:
    if asked.model != settings.model:
        raise Refusal(
            404,
            f"There is no model {shown(asked.model)} here; there is {settings.model!r}.",
            param="model",
            code="model_not_found",
        )
    _refuse_what_there_is_not(asked)
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if len(stops) + len(asked.stop_token_ids) > 64:
        raise Refusal(400, "More than 64 stops are given; give fewer.", param="stop")
    if asked.priority > settings.highest_priority:
        raise Refusal(400, f"priority is {asked.priority}; it may be {settings.highest_priority}.", param="priority")
    limits = _limits(asked, settings)
    options = asked.stream_options or StreamOptions()
    job = Job(
        kind=kind,
        n=asked.n or 1,
        sampling=_sampling(asked, own.get("logprobs")),
        stop=(*stops, *asked.stop_token_ids),
        constraint=asked.constraint(
            stops=bool(stops or asked.stop_token_ids), is_tree=asked.tree or asked.spawn is not None
        ),
        depth=_depth(asked.depth),
        spawn=_spawn(asked.spawn),
        limits=limits,
        priority=asked.priority,
        is_tree=asked.tree or asked.spawn is not None,
        tells_tree=asked.tree,
        tells_ids=asked.return_token_ids,
        ids_as_text=asked.return_tokens_as_token_ids,
        stream=asked.stream,
        tells_usage=options.include_usage,
        **own,
    )
    if job.choices > settings.most_choices:
        raise Refusal(400, f"{job.choices} answers are asked for; one request may ask for {settings.most_choices}.")
    if job.is_tree and job.stop:
        raise Refusal(400, "Trees end by the model's protocol; leave stop out, or tree and spawn.", param="stop")
    return job


def _refuse_what_there_is_not(asked: Body) -> None:
    if asked.seed is not None:
        raise _unknown("seed", "the server has one for all, by --seed")
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(asked, name):
            raise _unknown(name, "there is repetition_penalty")
    if asked.logit_bias:
        raise _unknown("logit_bias", "leave it out")


def _unknown(name: str, instead: str) -> Refusal:
    return Refusal(400, f"{name} is not offered by this server: {instead}.", param=name, code="unsupported_parameter")


def _sampling(asked: Body, logprobs: int | None) -> Sampling:
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    said = {name: value for name in names if (value := getattr(asked, name)) is not None}
    if said.get("top_k") in (-1, 0):
        # As others write that every token is kept.
        said["top_k"] = None
    try:
        return Sampling(**said, logprobs=logprobs or 0)
    except ValueError as error:
        raise Refusal(400, str(error), param=str(error).split()[0]) from None


def _limits(asked: Body, settings: ServerSettings) -> Limits:
    given = asked.limits or {}
    if unknown := sorted(given.keys() - set(Limits.__struct_fields__)):
        has = ", ".join(Limits.__struct_fields__)
        raise Refusal(400, f"limits has no {shown(unknown[0])}; it has {has}.", param="limits")
    try:
        limits = Limits(**given)
    except ValueError as error:
        raise Refusal(400, str(error), param="limits") from None
    if asked.deadline is not None:
        limits = within(limits, Limits(seconds=asked.deadline, tree_depth=None))
    return within(limits, settings.limits)


def _depth(given: Any) -> DepthPolicy | None:
    if given is None:
        return None
    try:
        return Fixed(given) if isinstance(given, int) else from_builtins(given, DepthPolicy)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refusal(400, f"depth: {error}", param="depth") from None


def _spawn(given: Any) -> SpawnPolicy | None:
    if given is None:
        return None
    try:
        return MaxChildren(given) if isinstance(given, int) else from_builtins(given, SpawnPolicy)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refusal(400, f"spawn: {error}", param="spawn") from None
