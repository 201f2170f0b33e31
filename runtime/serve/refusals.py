"""What a request is refused with: an HTTP status, and an error as clients of the OpenAI API read it."""

from __future__ import annotations

from typing import Any

from runtime.errors import (
    BraidError,
    CapacityError,
    EngineClosed,
    EngineFailed,
    PolicyError,
    QueueFull,
)


class Refusal(Exception):
    """Ends a request with a status; the message says what is wrong and what to do."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after
        """Seconds after which it may be tried again; 0 where that is of no use."""

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        if self.status == 401:
            kind = "authentication_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Gone(Exception):
    """Nobody is there any more to take an answer."""


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error. Texts of errors that nobody foresaw are not for clients."""
    match first_of(error):
        case Refusal() as refusal:
            return refusal
        case QueueFull() as full:
            return Refusal(429, str(full), retry_after=1)
        case EngineClosed() | EngineFailed():
            return Refusal(503, "The engine has ended. Ask whoever runs this server to start it again.")
        case PolicyError() | CapacityError() | ValueError() as wrong:
            return Refusal(400, str(wrong))
        case BraidError() as other:
            return Refusal(500, str(other), code=type(other).__name__)
        case _:
            return Refusal(500, "The server failed; its log says of what.")
