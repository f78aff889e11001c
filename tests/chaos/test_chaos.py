# SPDX-License-Identifier: Apache-2.0
"""Every experiment of `run.py`. tests/blipstream/test_supervisor.py has the cheapest of them, with toy models."""

import shutil
from pathlib import Path

import pytest

from blipstream.files import DEMO_RETRIEVAL_CHECKPOINT
from blipstream_build.build import build
from tests.chaos.run import EXPERIMENTS, experiment


@pytest.fixture(scope="module")
def repository(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's two checkpoints."""
    copy = Path(shutil.copytree(artifacts, tmp_path_factory.mktemp("chaos") / "repository"))
    return build(str(DEMO_RETRIEVAL_CHECKPOINT), "auto", copy)


@pytest.mark.full
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_image_is_lost(repository: Path, name: str) -> None:
    row = experiment(name, repository)
    if row.not_run:
        pytest.skip(row.not_run)
    assert row.is_well, row
