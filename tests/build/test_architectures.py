# SPDX-License-Identifier: Apache-2.0
"""The real architectures with random weights: they build and match transformers; shallow here, whole by mark."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

from build_repository import build
from tests.conftest import CHECKPOINT

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


@pytest.mark.parametrize(
    ("architecture", "dtype"), [*((name, "f32") for name in ARCHITECTURES), ("blip-image-captioning-base", "bf16")]
)
def test_shallow(architecture: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_random_checkpoint(tmp_path / architecture, architecture, SHALLOW)
    build(str(checkpoint), dtype, tmp_path / "repository")  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert "installed preprocess, encoder, decoder" in output
    if dtype == "f32":
        assert "captions   8 of 8 equal" in output


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole(architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_random_checkpoint(tmp_path / architecture, architecture)
    build(str(checkpoint), "f32", tmp_path / "repository")
    with capsys.disabled():
        print(capsys.readouterr().out)
