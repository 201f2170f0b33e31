"""What holds for a tree that says nothing of it: what the engine was given, or else what the checkpoint says."""

from __future__ import annotations

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

    def settings(self, given: ThreadArguments) -> ThreadSettings:
        """Of a root that is given these."""
        chosen = self.policy(given.policy)
        return ThreadSettings(
            depth=chosen.depth,
            spawn=chosen.spawn,
            sampling=self.sampling if given.sampling is None else self._session.sampled_as(given.sampling),
            priority=given.priority or 0,
            max_tokens=given.max_tokens or self._session.opened.max_tokens,
            tools=self._tools,
            chat_template_kwargs=given.chat_template_kwargs or {},
        )
