# SPDX-License-Identifier: Apache-2.0
"""Which tests concern a changed file."""

import pytest

from tests.changed import concerned
from tests.conftest import ROOT

TESTS = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.glob("tests/**/test_*.py")}


@pytest.mark.parametrize(
    ("path", "some"),
    [
        ("blipstream/images/formats.py", {"tests/blipstream/images/test_formats.py"}),
        ("blipstream/decoding/beams.py", {"tests/blipstream/decoding"}),
        ("blipstream/proxy/nginx.py", {"tests/blipstream/proxy", "tests/deploy/test_nginx.py"}),
        ("blipstream/options.py", {"tests/blipstream/test_options.py", "tests/build/test_generated_files.py"}),
        ("client/blipstream_client/_images.py", {"tests/client/test_images.py"}),
        ("client/blipstream_client/bulk/tar.py", {"tests/client/bulk/test_tar.py"}),
        ("build/model_configs.py", {"tests/build/test_generated_files.py"}),
        ("build/blipstream_build/inspection/model.py", {"tests/build"}),
        ("model_repository/encoder/1/model.py", {"tests/model_repository"}),
        ("deploy/nginx/nginx.conf", {"tests/deploy/test_nginx.py", "tests/deploy/test_kubernetes.py"}),
        ("docker-compose.yml", {"tests/deploy/test_compose.py"}),
        ("examples/stream.py", {"tests/examples/test_examples.py"}),
        ("docs/client.md", {"tests/docs", "tests/test_readme.py"}),
        ("tests/support/proxy.py", {"tests/client/test_failures.py"}),
        ("tests/client/test_tls.py", {"tests/client/test_tls.py"}),
    ],
)
def test_what_concerns_a_file(path: str, some: set[str]) -> None:
    assert (ROOT / path).exists()
    found = concerned(path, TESTS)
    assert found >= some
    assert all((ROOT / each).exists() for each in found)
    assert "tests" not in found


def test_every_source_file_concerns_a_test() -> None:
    """But for those that are empty of code."""
    folders = ("blipstream", "build", "client", "deploy")
    sources = [path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py")]
    lonely = {str(path.relative_to(ROOT)) for path in sources if not concerned(str(path.relative_to(ROOT)), TESTS)}
    assert {name for name in lonely if not name.endswith("__init__.py")} == set()
