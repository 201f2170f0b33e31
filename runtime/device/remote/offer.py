"""What a server offers, seen by asking it once before an engine opens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import msgspec

from policies import DepthPolicy, Fixed
from policies.conversion import shown
from runtime.device.remote.chunks import BrokenStream
from runtime.device.remote.connection import Refused, Unavailable, refusal_of, timeout_of
from runtime.device.remote.retrying import Patience
from runtime.device.remote.settings import RemoteSettings, Served
from runtime.errors import PolicyError, RemoteError

_UNFIT = (400, 404, 405, 413, 415, 422, 501)
"""How servers refuse a request that has something they do not know."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A server's model, and how it is asked."""

    address: str
    model: str
    is_braid: bool = False
    """Whether it is our own server, which takes depth policies."""
    token_ids: bool = False
    """Whether it takes and tells token ids; otherwise text."""
    logprobs: bool = False
    max_context: int | None = None
    """Most tokens of a context, if it says so."""

    def check_depth(self, depth: DepthPolicy) -> None:
        """Raises `PolicyError` for a policy that the server does not take."""
        if not self.is_braid and depth != Fixed():
            raise PolicyError(
                f"{type(depth).__name__} decides how deep tokens go, and {self.address} does not take depth policies: "
                "only our own server does, python -m runtime.serve. Leave depth out, or serve the model so."
            )


class _Model(msgspec.Struct):
    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    logprobs: dict[str, Any] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


def look(served: Served, probe: Sequence[int]) -> Offer:
    """What a server offers. Blocks; asks it for one token, and our own server for none. `probe` is a prompt of ids;
    empty where ids are of no use.

    Raises `RemoteError` for a server that cannot be reached, has no such model, or does not speak completions.
    """
    settings = served.settings
    headers, timeout = settings.headers, timeout_of(settings)
    with httpx2.Client(base_url=served.address + "/", headers=headers, timeout=timeout) as client:
        return _Looking(client, served.address, settings).offer(served.model, probe)


class _Looking:
    def __init__(self, client: httpx2.Client, address: str, settings: RemoteSettings) -> None:
        self._client = client
        self._address = address
        self._settings = settings

    def offer(self, model: str | None, probe: Sequence[int]) -> Offer:
        found = self._models()
        if model is None:
            if len(found) != 1:
                has = ", ".join(repr(each.id) for each in found[:8]) or "says of none"
                raise RemoteError(f"{self._address} has several models or {has}; name one by model=.")
            model = found[0].id
        own = next((each for each in found if each.id == model), None)
        wanted = self._settings.token_ids
        base = Offer(address=self._address, model=model, max_context=None if own is None else own.max_model_len)
        if own is not None and own.owned_by == "braid":
            ids = bool(probe) if wanted is None else wanted
            return msgspec.structs.replace(base, is_braid=True, token_ids=ids, logprobs=True)
        refusal: Refused | None = None
        for prompt, more in self._ways(probe):
            try:
                choice = self._tried({"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, **more})
            except Refused as error:
                if error.status not in _UNFIT:
                    raise
                refusal = error
                continue
            tells_ids = not isinstance(prompt, str)
            if tells_ids and choice.token_ids is None:
                continue
            return msgspec.structs.replace(base, token_ids=tells_ids, logprobs=bool(choice.logprobs))
        if wanted:
            raise RemoteError(f"{self._address} does not tell token ids; leave RemoteSettings.token_ids out.")
        has = f" It has {', '.join(repr(each.id) for each in found[:8])}." if found and own is None else ""
        raise RemoteError(f"{self._address} gives no completion of {shown(model)}: {refusal}{has}")

    def _ways(self, probe: Sequence[int]) -> Iterator[tuple[str | list[int], dict[str, Any]]]:
        """Requests, from what would be best to what every server takes."""
        if probe and self._settings.token_ids is not False:
            ids = {"return_token_ids": True}
            yield list(probe), {**ids, "logprobs": 1, "return_tokens_as_token_ids": True}
            yield list(probe), ids
        if not self._settings.token_ids:
            yield "1", {"logprobs": 1}
            yield "1", {}

    def _models(self) -> list[_Model]:
        try:
            return msgspec.json.decode(self._asked("GET", "models", None), type=_Models).data
        except Refused as error:
            if error.status in (404, 405):
                return []
            raise
        except msgspec.MsgspecError as error:
            raise RemoteError(f"{self._address}/models is no list of models ({error}); is /v1 missing?") from error

    def _tried(self, body: dict[str, Any]) -> _Choice:
        try:
            answer = msgspec.json.decode(self._asked("POST", "completions", body), type=_Completion)
        except msgspec.MsgspecError as error:
            raise RemoteError(f"{self._address}/completions answers with no completion ({error}).") from error
        if not answer.choices:
            raise RemoteError(f"{self._address}/completions answers without choices.")
        return answer.choices[0]

    def _asked(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        """The body of an answer. Raises `Refused`, and `RemoteError` for what cannot be reached."""
        patience = Patience(self._settings, self._address)
        while True:
            try:
                answer = self._client.request(method, path, json=body)
                if answer.status_code == 200:
                    return answer.content
                error = refusal_of(answer.status_code, answer.headers.get("retry-after"), answer.content)
            except httpx2.TransportError as broken:
                error = Unavailable(f"{type(broken).__name__}: {broken}")
            except httpx2.RequestError as broken:
                error = BrokenStream(f"{type(broken).__name__}: {broken}")
            if not isinstance(error, BrokenStream):
                raise error
            time.sleep(patience.pause(error))
