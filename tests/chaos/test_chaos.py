# SPDX-License-Identifier: Apache-2.0
"""Every experiment of `run.py`. tests/blipstream/test_supervisor.py has the cheapest of them, with toy models."""

from pathlib import Path

import pytest

from tests.chaos.run import EXPERIMENTS, experiment


@pytest.mark.full
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_image_is_lost(artifacts: Path, name: str) -> None:
    row = experiment(name, artifacts)
    if row.not_run:
        pytest.skip(row.not_run)
    assert row.is_well, row
