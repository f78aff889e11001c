# SPDX-License-Identifier: Apache-2.0
"""The real architectures with random weights match transformers: shallow ones here, whole ones with the mark `full`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blipstream.images.pixels import load_pixels
from blipstream.server.triton import TritonServer
from blipstream.vision.openvino import OpenVINOEncoder
from blipstream_bench.random_checkpoint import ARCHITECTURES, save_random_checkpoint
from blipstream_build.build import build
from blipstream_client import Caption, Client
from tests.conftest import SAMPLES
from tests.reference import Reference, relative_error

SHALLOW = 2  # layers


def check(folder: Path, architecture: str, layers: int | None = None) -> None:
    """Build in f32, serve, and compare what comes out of Triton with transformers."""
    checkpoint = save_random_checkpoint(folder / architecture, architecture, layers)
    repository = folder / "repository"
    build(str(checkpoint), "f32", repository)
    reference = Reference(checkpoint)
    files = sorted(SAMPLES.glob("*.jpg"))[:3]
    images = [Image.open(file) for file in files]
    embeds = reference.embed(images)
    ours = OpenVINOEncoder(repository / "encoder/1/openvino").encode(
        np.stack([load_pixels(file.read_bytes(), 384) for file in files])
    )
    assert relative_error(torch.from_numpy(ours), embeds) < 1e-4
    expected = reference.generate(embeds.half(), max_new_tokens=12)  # as between Triton's models
    with (
        TritonServer(repository=repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server,
        Client(server.grpc_url, timeout=300) as client,
    ):
        captions = list(client.caption_many(files, max_tokens=12))
    assert [caption.text for caption in captions if isinstance(caption, Caption)] == [one.text for one in expected]
    for caption, one in zip(captions, expected, strict=True):
        assert isinstance(caption, Caption)
        assert caption.score == pytest.approx(one.score, rel=1e-3)


@pytest.mark.parametrize("architecture", ["base", pytest.param("large", marks=pytest.mark.full)])
def test_shallow(architecture: str, tmp_path: Path) -> None:
    check(tmp_path, architecture, SHALLOW)


@pytest.mark.full
def test_shallow_in_bf16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The build itself checks the error of each stage."""
    checkpoint = save_random_checkpoint(tmp_path / "base", "base", SHALLOW)
    build(str(checkpoint), "bf16", tmp_path / "repository")
    assert "installed preprocess, encoder, decoder" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole(architecture: str, tmp_path: Path) -> None:
    check(tmp_path, architecture)
