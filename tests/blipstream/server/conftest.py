# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that start a tritonserver with a toy model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.double_model import DOUBLE, leftovers, write_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "double", DOUBLE)
    return tmp_path / "models"


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test leaves no process, no shared memory and no temporary folder (a log may stay).

    Servers that other tests share may run already.
    """
    before = set(leftovers())
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield
    assert set(leftovers()) <= before
    assert not [path for path in (tmp_path / "tmp").iterdir() if ".log" not in path.name]
