# SPDX-License-Identifier: Apache-2.0
import inspect
import subprocess
import sys

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


def test_only_the_dependencies_it_names_are_imported() -> None:
    """The server's own packages, and torch above all, stay out of a client."""
    program = (
        "import sys, blipstream_client._cli, blipstream_client._grpc, blipstream_client._http\n"
        "print(sorted({'blipstream', 'torch', 'transformers', 'gevent', 'aiohttp'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
