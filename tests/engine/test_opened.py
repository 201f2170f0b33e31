"""What an opened model brings: it is looked at once, and handed on whole."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import numpy as np
import pytest

from runtime import Engine, Opened
from runtime.device.settings import EngineSettings, SettingsOptions
from runtime.threads.arguments import EngineArguments, EngineOptions
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import counting


def opened(**fields: Any) -> Opened:
    return Opened(device=ScriptedDevice(counting), **fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop_tokens", [-1]), ("stop_tokens", "2"), ("max_context", 0), ("max_context", "8"), ("vocab_size", -5)],
)
def test_what_does_not_fit_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} .*\.$"):
        opened(**{name: value})


def test_numbers_of_other_libraries_are_taken() -> None:
    given = opened(stop_tokens=np.array([3, 4]), max_context=np.int64(8), vocab_size=None)
    assert (given.stop_tokens, given.max_context, given.vocab_size) == (frozenset({3, 4}), 8, None)


def test_a_device_alone_is_refused() -> None:
    device: Any = ScriptedDevice(counting)
    with pytest.raises(ValueError, match=r"^opened is <.*; give an Opened"):
        Engine.from_device(device)


@pytest.mark.parametrize(("options", "struct"), [(EngineOptions, EngineArguments), (SettingsOptions, EngineSettings)])
def test_options_of_calls_are_the_fields_they_become(options: type, struct: type[msgspec.Struct]) -> None:
    assert list(get_type_hints(options)) == [field.name for field in msgspec.structs.fields(struct)]
