"""What a server is asked for: the bodies of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies import DepthPolicy, Fixed, to_builtins
from runtime.device.remote.offer import Offer
from runtime.device.remote.vocabulary import Vocabulary
from runtime.errors import RemoteError
from runtime.link.commands import Generate
from runtime.link.sampling import Sampling

_OTHER_FIELDS = {"top_k": None, "min_p": None, "repetition_penalty": 1.0}
"""Of vLLM's and our own API, sent where something is asked for."""


class Asking:
    """Writes requests to one server."""

    def __init__(self, offer: Offer, vocabulary: Vocabulary, max_context: int | None) -> None:
        self._offer = offer
        self._max_context = max_context
        self._vocabulary = vocabulary

    def completion(
        self, context: Sequence[int], request: Generate, depth: DepthPolicy, priority: int, *, said: int
    ) -> dict[str, Any]:
        """The rest of a generate that has `said` some tokens, which the context has."""
        offer, sampling = self._offer, request.sampling
        left = request.max_tokens - said
        if self._max_context is not None:
            left = min(left, self._max_context - len(context))
        body: dict[str, Any] = {
            "model": offer.model,
            "prompt": list(context) if offer.token_ids else self._vocabulary.text_of(context),
            "max_tokens": left,
            **_sampling(sampling),
        }
        if offer.logprobs:
            body["logprobs"] = sampling.logprobs
        if offer.token_ids:
            body["return_token_ids"] = True
            if offer.logprobs and sampling.logprobs:
                body["return_tokens_as_token_ids"] = True
            if request.stop_tokens:
                body["stop_token_ids"] = sorted(request.stop_tokens)
        if offer.is_braid:
            if depth != Fixed():
                body["depth"] = to_builtins(depth)
            if priority:
                body["priority"] = priority
            if request.max_iterations is not None:
                body["limits"] = {"iterations": request.max_iterations}
        return body

    def score(self, context: Sequence[int], request: Generate, depth: DepthPolicy, priority: int) -> dict[str, Any]:
        """An echo of the context and what is to be scored after it. Raises `RemoteError` where there is none."""
        if not (self._offer.token_ids and self._offer.logprobs):
            raise RemoteError(
                f"{self._offer.address} tells no log-probabilities of token ids, so that nothing can be scored there."
            )
        body = self.completion([*context, *request.scores], request, depth, priority, said=0)
        body.pop("stop_token_ids", None)
        return {**body, "max_tokens": 0, "echo": True, **_sampling(Sampling())}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    said: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.top_p is not None:
        said["top_p"] = sampling.top_p
    for name, plain in _OTHER_FIELDS.items():
        value = getattr(sampling, name)
        if value != plain:
            said[name] = value
    return said
