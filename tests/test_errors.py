"""Messages of errors: sentences, whatever they quote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BraidError)]


@pytest.mark.parametrize("kind", KINDS)
@given(st.text(), st.integers(0, 3))
def test_a_message_ends_in_one_full_stop(kind: type[errors.BraidError], text: str, stops: int) -> None:
    message = str(kind(f"It says {text}" + "." * stops))
    assert message.endswith(".")
    assert not message.endswith("..")


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_can_be_quoted_whatever_its_text_does() -> None:
    assert errors.described(ValueError("Too much.")) == "ValueError: Too much"
    assert errors.described(Silent()) == "Silent: its text cannot be had"


def test_a_failure_of_the_device_names_thread_and_cause() -> None:
    cause = LookupError("nothing there.")
    error = errors.device_error((0, 1), cause)
    assert str(error) == "Thread (0, 1) ended, because the device failed for it: LookupError: nothing there."
    assert error.__cause__ is cause
