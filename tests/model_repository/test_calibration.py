# SPDX-License-Identifier: Apache-2.0
"""A calibrated matcher in the real server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from blipstream import calibration
from blipstream.config import CheckpointConfig
from blipstream.server.triton import TritonServer
from blipstream_client import Calibration, Client
from blipstream_client._cli import main
from tests.conftest import SAMPLES

TEXTS = ["two whales", "a cat", "a dog above a door on a brown background", "a"]
TEMPERATURE, THRESHOLD = 2.5, 0.375


@pytest.fixture(scope="module")
def calibrated_server(matching_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = shutil.copytree(matching_artifacts, tmp_path_factory.mktemp("calibrated") / "models")
    config = CheckpointConfig.load(repository / "matcher/1/openvino")
    calibration.Calibration(config.origin, config.revision, TEMPERATURE, THRESHOLD).save(repository / "matcher/1")
    with TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


def test_match_changes_and_the_rest_does_not(calibrated_server: TritonServer, matching_server: TritonServer) -> None:
    with Client(calibrated_server.grpc_url) as client, Client(matching_server.grpc_url) as other:
        found, expected = (each.match(SAMPLES / "two-whales.jpg", TEXTS) for each in (client, other))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.logit, ours.similarity) == pytest.approx((theirs.logit, theirs.similarity), abs=1e-4)
        assert ours.match == pytest.approx(1 / (1 + np.exp(-ours.logit / TEMPERATURE)), abs=1e-6)
        assert theirs.match == pytest.approx(1 / (1 + np.exp(-theirs.logit)), abs=1e-6)
    assert list(found.ranked) == sorted(found, key=lambda each: -each.match)


def test_candidates_have_the_same_match(calibrated_server: TritonServer) -> None:
    with Client(calibrated_server.grpc_url) as client:
        best = client.caption(SAMPLES / "two-whales.jpg", rerank=4, num_captions=4, num_beams=4)
    for each in (best, *best.alternatives):
        assert each.logit is not None
        assert each.match == pytest.approx(1 / (1 + np.exp(-each.logit / TEMPERATURE)), abs=1e-6)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_info_says_it(scheme: str, calibrated_server: TritonServer, matching_server: TritonServer) -> None:
    for server, expected in ((calibrated_server, Calibration(TEMPERATURE, THRESHOLD)), (matching_server, None)):
        with Client(getattr(server, f"{scheme}_url")) as client:
            info = client.info()
        assert info.calibration == expected


def test_the_command_info_says_it(calibrated_server: TritonServer, matching_server: TritonServer) -> None:
    servers = calibrated_server, matching_server
    said = [CliRunner().invoke(main, ["info", "--url", server.grpc_url]).stdout for server in servers]
    assert "calibrated  temperature 2.500, threshold 0.375" in said[0]
    assert "calibrated" not in said[1]
