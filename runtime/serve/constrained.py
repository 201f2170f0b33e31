"""What answers must be, as clients of the OpenAI API, and of Braid, ask for it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from runtime.link.constraints import Constraint
from runtime.protocol.constraints import ConstraintOptions, constraint_of
from runtime.serve.refusals import Refusal


class ResponseSchema(msgspec.Struct, kw_only=True):
    """Of OpenAI's response_format; an answer keeps to it whether that is to be `strict` or not."""

    name: str = ""
    schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object"})


class ResponseFormat(msgspec.Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: ResponseSchema | None = None


class Constrained(msgspec.Struct, kw_only=True):
    """The fields of a request that say what its answers must be, one of them at most."""

    response_format: ResponseFormat | None = None
    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    choices: list[str] | None = None
    grammar: str | None = None

    def constraint(self, *, stops: bool, is_tree: bool) -> Constraint | None:
        """What answers must be, if anything. `stops` and `is_tree` say what else is asked for.

        Raises `Refusal`, naming the field, for what cannot be followed.
        """
        given: ConstraintOptions = {}
        names = []
        asked = self.response_format
        if asked is not None and asked.type != "text":
            names.append("response_format")
            given["json_schema"] = {"type": "object"} if asked.json_schema is None else asked.json_schema.schema
        for name in ("json_schema", "regex", "choices", "grammar"):
            if (value := getattr(self, name)) is not None:
                names.append(name)
                given[name] = value
        if not names:
            return None
        if len(names) > 1:
            raise Refusal(400, f"{' and '.join(names)} are given together; an answer can be one.", param=names[1])
        if is_tree:
            raise Refusal(
                400, f"Trees end by the model's protocol; leave {names[0]} out, or tree and spawn.", param=names[0]
            )
        try:
            return constraint_of(given, stops=stops)
        except ValueError as error:
            raise Refusal(400, str(error), param=names[0]) from None
        except ImportError as error:
            raise Refusal(
                400, f"{names[0]} is not offered by this server: {error}", param=names[0], code="unsupported_parameter"
            ) from None
