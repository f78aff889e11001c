# SPDX-License-Identifier: Apache-2.0
"""Errors within a batch stay with their own items. tests/model_repository has the rest, on a real Triton."""

from collections.abc import Sequence

import pytest

from blipstream.errors import FAILED, BlipstreamError, InvalidInput
from blipstream.serving.adapter import attempt, attempt_together


def halves(numbers: Sequence[int]) -> list[int]:
    if any(number % 2 for number in numbers):
        raise ValueError("an odd number")
    return [number // 2 for number in numbers]


def test_an_attempt_returns_a_result_or_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert attempt(len, "four") == 4
    error = attempt(len, 4)  # type: ignore[arg-type]
    assert isinstance(error, BlipstreamError)
    assert str(error).startswith(f"{FAILED} (TypeError)")
    assert "TypeError" in capfd.readouterr().err


def test_errors_keep_their_place(capfd: pytest.CaptureFixture[str]) -> None:
    refused = InvalidInput("no number")
    batch: list[int | BlipstreamError] = [8, refused, 5, 6]
    four, first, failed, three = attempt_together(halves, batch)
    assert (four, first, three) == (4, refused, 3)
    assert isinstance(failed, BlipstreamError)
    assert "an odd number" in capfd.readouterr().err
    assert attempt_together(halves, batch[1:2]) == [refused]
