# SPDX-License-Identifier: Apache-2.0
"""Whose fault it was that another model refused."""

import pytest

from blipstream.errors import FAILED, BlipstreamError, InvalidInput, Overloaded, TimedOut, error_of


@pytest.mark.parametrize(
    ("model", "message", "expected"),
    [
        ("preprocess", "image must be a JPEG", InvalidInput),
        ("preprocess", "[request id: a] Exceeds maximum queue size", Overloaded),
        ("preprocess", "32 requests wait already whose images may take long", Overloaded),
        ("encoder", "Exceeds maximum queue size", Overloaded),
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
    assert str(error) == message
