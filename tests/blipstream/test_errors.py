# SPDX-License-Identifier: Apache-2.0
"""Whose fault it was that another model refused."""

from collections.abc import Sequence

import pytest

from blipstream.errors import FAILED, BlipstreamError, InvalidInput, Overloaded, TimedOut, apart, error_of


@pytest.mark.parametrize(
    ("model", "message", "expected"),
    [
        ("preprocess", "image must be a JPEG", InvalidInput),
        ("preprocess", "[request id: a] Exceeds maximum queue size", Overloaded),
        ("preprocess", "32 requests wait already whose images may take long", Overloaded),
        ("encoder", "Exceeds maximum queue size", Overloaded),
        ("preprocess", "Error when running inference: Server not ready", Overloaded),
        ("preprocess", "Stub process 'preprocess_0_0' is not healthy.", BlipstreamError),
        ("preprocess", "Failed to process the request(s) for model 'preprocess_0_0'", BlipstreamError),
        ("encoder", "no memory", BlipstreamError),
        ("encoder", "Request timeout expired", TimedOut),
        ("preprocess", f"{FAILED} (OSError): try again, or see its log", BlipstreamError),
    ],
)
def test_what_another_model_refused_with(model: str, message: str, expected: type[BlipstreamError]) -> None:
    error = error_of(model, message)
    assert type(error) is expected
    assert str(error).startswith(message)


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


def test_what_fails_for_being_much_does_not_fail() -> None:
    def same(items: Sequence[int]) -> Sequence[int]:
        if len(items) > 2:
            raise MemoryError
        return items

    assert apart(same, range(9)) == list(range(9))
    assert apart(same, []) == []
