# SPDX-License-Identifier: Apache-2.0
"""The real architectures with random weights: they build and match transformers; shallow here, whole by mark."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

from blipstream.encoders.openvino import OpenVINOEncoder
from blipstream.images import load_pixels
from blipstream.server import TritonServer
from blipstream_client import Caption, Client
from build_repository import build
from tests.conftest import CHECKPOINT, SAMPLES
from tests.reference import Reference, relative_error

SHALLOW = 2  # layers
# hub name: width, feed-forward width, layers, heads of the ViT
ARCHITECTURES = {
    "blip-image-captioning-base": (768, 3072, 12, 12),
    "blip-image-captioning-large": (1024, 4096, 24, 16),
}


def save_random_checkpoint(folder: Path, architecture: str, layers: int | None = None) -> Path:
    """A checkpoint of the real shape, every matrix drawn with a standard deviation of 0.02."""
    width, mlp_width, vision_layers, heads = ARCHITECTURES[architecture]
    config = BlipConfig(
        text_config=BlipTextConfig(
            vocab_size=30524, encoder_hidden_size=width, num_attention_heads=12, num_hidden_layers=layers or 12
        ),
        vision_config=BlipVisionConfig(
            hidden_size=width,
            intermediate_size=mlp_width,
            num_hidden_layers=layers or vision_layers,
            num_attention_heads=heads,
            image_size=384,
            initializer_range=0.02,
        ),
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    assert float(model.vision_model.encoder.layers[0].mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(CHECKPOINT / name, folder / name)
    settings = (CHECKPOINT / "processor_config.json").read_text()
    (folder / "processor_config.json").write_text(settings.replace("192", "384"))
    return folder


def check(folder: Path, architecture: str, layers: int | None = None) -> None:
    """Build in f32, serve, and hold what comes out of Triton against transformers."""
    checkpoint = save_random_checkpoint(folder / architecture, architecture, layers)
    repository = folder / "repository"
    build(str(checkpoint), "f32", repository)
    reference = Reference(checkpoint)
    files = sorted(SAMPLES.glob("*.jpg"))
    images = [Image.open(file) for file in files]
    embeds = reference.embed(images)
    ours = OpenVINOEncoder(repository / "encoder/1/openvino").encode(
        np.stack([load_pixels(file.read_bytes(), 384) for file in files])
    )
    assert relative_error(torch.from_numpy(ours), embeds) < 1e-4
    expected = reference.generate(embeds.half(), max_new_tokens=12)  # as they cross Triton
    with (
        TritonServer(repository=repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server,
        Client(server.grpc_url, timeout=300) as client,
    ):
        captions = list(client.caption_many(files, max_tokens=12))
    assert [caption.text for caption in captions if isinstance(caption, Caption)] == [one.text for one in expected]
    for caption, one in zip(captions, expected, strict=True):
        assert isinstance(caption, Caption)
        assert caption.score == pytest.approx(one.score, rel=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shallow(architecture: str, tmp_path: Path) -> None:
    check(tmp_path, architecture, SHALLOW)


def test_shallow_in_bf16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The build itself judges how far each stage is off."""
    checkpoint = save_random_checkpoint(tmp_path / "base", "blip-image-captioning-base", SHALLOW)
    build(str(checkpoint), "bf16", tmp_path / "repository")
    assert "installed preprocess, encoder, decoder" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole(architecture: str, tmp_path: Path) -> None:
    check(tmp_path, architecture)
