# SPDX-License-Identifier: Apache-2.0
"""The configuration `cuda` on a real Triton: on a GPU as it is, elsewhere with its models moved to the CPU."""

from pathlib import Path

import pytest
import torch

from blipstream.errors import ServerError
from blipstream.server.triton import TritonServer
from blipstream_build.build import build
from blipstream_client import Caption, Client
from tests.conftest import CHECKPOINT, SAMPLES


def check(repository: Path, samples: dict[str, str]) -> None:
    files = [SAMPLES / name for name in samples]
    with (
        TritonServer(repository=repository, config="cuda", http_port=0, grpc_port=0, metrics_port=0) as server,
        Client(server.grpc_url) as client,
    ):
        for num_beams in (1, 3):
            captions = list(client.caption_many(files, num_beams=num_beams))
            texts = [caption.text for caption in captions if isinstance(caption, Caption)]
            assert texts == list(samples.values())


def test_on_a_cpu(tmp_path: Path, samples: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The same adapters, with tensors passed by DLPack; only the device differs."""
    build(str(CHECKPOINT), "f32", tmp_path, "cuda")
    assert "encoder    f32" in capsys.readouterr().out
    for config in (tmp_path / "encoder/configs/cuda.pbtxt", *tmp_path.glob("*/config.pbtxt")):
        config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))
    check(tmp_path, samples)


@pytest.mark.requires_cuda
def test_on_a_gpu(tmp_path: Path, samples: dict[str, str]) -> None:
    build(str(CHECKPOINT), "auto", tmp_path, "cuda")
    check(tmp_path, samples)


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(artifacts: Path) -> None:
    server = TritonServer(repository=artifacts, config="cuda", http_port=0, grpc_port=0, metrics_port=0)
    with pytest.raises(ServerError, match="no GPUs are available: choose the configuration cpu"), server:
        pass
