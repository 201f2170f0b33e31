"""What holds for a tree that says nothing of it: what the engine was given, or else what the checkpoint says."""

from __future__ import annotations

from collections.abc import Sequence

from policies import Limits, Policy
from runtime.link.sampling import Sampling
from runtime.threads.arguments import EngineArguments, ThreadArguments
from runtime.threads.session import Session, ThreadSettings
from runtime.threads.tools import Tools


class Defaults:
    """Of one open engine."""

    def __init__(self, arguments: EngineArguments, session: Session, tools: Tools) -> None:
        self._arguments = arguments
        self._session = session
        self._tools = tools

    @property
    def sampling(self) -> Sampling:
        return self._session.sampled_as(self._arguments.sampling or Sampling())

    def limits(self, given: Limits | None) -> Limits:
        return given or self._arguments.limits or Limits()

    def policy(self, given: Policy | None) -> Policy:
        return given or self._arguments.policy or self._session.opened.policy or Policy()

    def settings(self, given: ThreadArguments, *, has_messages: bool, is_driven: bool = False) -> ThreadSettings:
        """Of a root that is given these, and begins with messages or not. Raises `ValueError` for a name of no tool,
        and where tools are given to a model that has no way of calling any."""
        chosen = self.policy(given.policy)
        tools = self._tools_of(given.tools)
        variables = given.chat_template_kwargs or {}
        is_offered = given.tools is not None or (has_messages and "tools" not in variables)
        offers = is_offered and len(tools) > 0 and self._session.offers_by_template
        protocol = self._session.opened.protocol
        if is_driven and given.tools and not offers and (protocol is None or protocol.tools is None):
            raise ValueError(
                "tools are given, and neither a protocol nor the chat template says how the model calls them. Declare "
                "tags in braid.json, or call tools from a program."
            )
        return ThreadSettings(
            depth=chosen.depth,
            spawn=chosen.spawn,
            sampling=self.sampling if given.sampling is None else self._session.sampled_as(given.sampling),
            priority=given.priority or 0,
            max_tokens=given.max_tokens or self._session.opened.max_tokens,
            tools=tools,
            offers_tools=offers,
            chat_template_kwargs={**variables, "tools": tools.schemas} if offers else variables,
        )

    def _tools_of(self, given: Tools | Sequence[str] | None) -> Tools:
        if given is None:
            return self._tools
        return given if isinstance(given, Tools) else self._tools.named(given)
