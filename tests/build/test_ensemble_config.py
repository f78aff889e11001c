# SPDX-License-Identifier: Apache-2.0
"""A bound on the requests between the steps of ensembles, for servers that know it."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from blipstream.files import MODEL_REPOSITORY
from blipstream.serving.loading_service import MAX_WAITING
from blipstream_build.ensemble_config import CONTAINER, MAX_INFLIGHT, write_ensemble_configs
from blipstream_build.repository import ENSEMBLE_CONFIGS, materialise


def parse(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def test_where_the_server_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    materialise(tmp_path)
    monkeypatch.setenv(CONTAINER, "26.05")
    write_ensemble_configs(tmp_path)
    for generated in ENSEMBLE_CONFIGS:
        config = parse(tmp_path / generated)
        assert config.ensemble_scheduling.max_inflight_requests == MAX_INFLIGHT
        config.ensemble_scheduling.ClearField("max_inflight_requests")
        assert config == parse(MODEL_REPOSITORY / generated.parts[0] / "config.pbtxt")


@pytest.mark.parametrize("version", [None, "24.10", "26.03"])
def test_where_it_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """A config that was written for another server is removed."""
    materialise(tmp_path)
    monkeypatch.setenv(CONTAINER, "26.05")
    write_ensemble_configs(tmp_path)
    monkeypatch.setenv(CONTAINER, version) if version else monkeypatch.delenv(CONTAINER)
    write_ensemble_configs(tmp_path)
    assert not any((tmp_path / generated).exists() for generated in ENSEMBLE_CONFIGS)


def test_the_first_queue_does_not_reach_it() -> None:
    """At the bound, Triton would block its front end instead of refusing."""
    config = parse(MODEL_REPOSITORY / "preprocess/config.pbtxt")
    computed = config.max_batch_size * sum(group.count or 1 for group in config.instance_group)
    assert MAX_WAITING + computed < MAX_INFLIGHT
