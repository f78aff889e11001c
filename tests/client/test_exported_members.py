# SPDX-License-Identifier: Apache-2.0
import inspect

import blipstream_client
from blipstream_client import _exceptions


def test_all_is_sorted_and_complete() -> None:
    assert all(hasattr(blipstream_client, name) for name in blipstream_client.__all__)
    assert blipstream_client.__all__ == sorted(blipstream_client.__all__) == dir(blipstream_client)
    assert not hasattr(blipstream_client, "Klient")


def test_every_exception_is_exported_and_in_the_tree_shown() -> None:
    for name, value in vars(_exceptions).items():
        if inspect.isclass(value) and value.__module__ == _exceptions.__name__:
            assert issubclass(value, blipstream_client.BlipstreamError)
            assert name in blipstream_client.__all__
            assert f"* {name}" in str(_exceptions.__doc__)
