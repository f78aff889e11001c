# SPDX-License-Identifier: Apache-2.0
"""Errors that travel from one model to another, and who is at fault."""

from collections.abc import Sequence

import pytest

from blipstream.errors import (
    FAILED,
    BackendDied,
    BlipstreamError,
    Gone,
    InvalidInput,
    Overloaded,
    Stopping,
    TimedOut,
    apart,
    format_error,
    parse_error,
    triton_error,
)

KINDS = [BlipstreamError, InvalidInput, Overloaded, Stopping, TimedOut, Gone, BackendDied]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "prefix",
    ["", "[request id: <id_unknown>] ", "in ensemble 'caption', ", "in ensemble 'caption', [request id: a b] "],
)
def test_an_error_comes_back_as_what_it_was(kind: type[BlipstreamError], prefix: str) -> None:
    message = "[overloaded] image must be a JPEG, not b'in ensemble'\nand [timeout] besides"
    found = parse_error(prefix + format_error(kind(message)))
    assert type(found) is kind
    assert str(found) == message


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in errors_below(BlipstreamError)]
    assert len(set(codes)) == len(codes) >= len(KINDS)


def errors_below(kind: type[BlipstreamError]) -> list[type[BlipstreamError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in errors_below(child))]


def test_triton_gets_status_and_code() -> None:
    class TritonError:
        INVALID_ARG = 3

        def __init__(self, text: str, status: int) -> None:
            self.told = text, status

    error = triton_error(TritonError, InvalidInput("image must be a JPEG"))
    assert error.told == ("[invalid_input] image must be a JPEG", 3)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[request id: a] Exceeds maximum queue size", Overloaded),
        ("Error when running inference: Server not ready", Stopping),
        ("Stub process 'preprocess_0_0' is not healthy.", BackendDied),
        ("Failed to process the request(s) for model 'preprocess_0_0'", BlipstreamError),
        ("no memory", BlipstreamError),
        ("Request timeout expired", TimedOut),
        ("[from_the_future] no memory", BlipstreamError),
    ],
)
def test_text_without_a_code_is_tritons(message: str, expected: type[BlipstreamError]) -> None:
    error = parse_error(message)
    assert type(error) is expected
    assert str(error) == message


@pytest.mark.parametrize("guilty", [(), (3,), (0, 6), tuple(range(7))])
def test_only_those_fail_that_fail_alone(guilty: tuple[int, ...], capfd: pytest.CaptureFixture[str]) -> None:
    def double(numbers: Sequence[int]) -> list[int]:
        if any(number in guilty for number in numbers):
            raise IndexError("the culprit is among them")
        return [2 * number for number in numbers]

    results = apart(double, range(7))
    assert [str(result) for result in results] == [
        f"{FAILED} (IndexError): try again, or see its log" if number in guilty else str(2 * number)
        for number in range(7)
    ]
    assert ("the culprit" in capfd.readouterr().err) == bool(guilty)


def test_what_fails_only_together_does_not_fail() -> None:
    def same(items: Sequence[int]) -> Sequence[int]:
        if len(items) > 2:
            raise MemoryError
        return items

    assert apart(same, range(9)) == list(range(9))
    assert apart(same, []) == []
