# SPDX-License-Identifier: Apache-2.0
"""PyTorch's encoder gives transformers' image_embeds in every batch size, on a GPU with CUDA graphs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

from blipstream.cuda_graphs import recording_soon
from blipstream.errors import ArtifactError
from blipstream.vision import load_encoder
from blipstream_build.build import build
from blipstream_build.verify import TOLERANCE
from tests.conftest import CHECKPOINT, DEVICES
from tests.reference import Reference, relative_error
from tests.support.image_files import stack_pixels
from tests.support.recorded_graphs import Record


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("cuda_repository")
    build(str(CHECKPOINT), "auto", repository, "cuda")
    return repository / "encoder/1/torch"


@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_every_size(
    folder: Path, reference: Reference, scene_images: list[Image.Image], device: str
) -> None:
    """Each size three times, since graphs are captured the second time, and each time with other images."""
    encoder = load_encoder("torch", folder, device, "f32")
    expected = reference.embed(scene_images[:24])
    pixels = stack_pixels(scene_images[:24], encoder.config.vision.image_size)
    for size in (1, 3, 8):
        for start in range(0, 3 * size, size):
            with recording_soon():
                embeds = encoder.encode(pixels[start : start + size])
            assert relative_error(embeds.cpu(), expected[start : start + size]) < 1e-5


def test_warming_up_records_each_size(folder: Path, recorded_graphs: Record) -> None:
    encoder = load_encoder("torch", folder, "cpu", "f32")
    encoder.warm_up_batches = (2, 2, 1, 1)
    encoder.warm_up()
    assert len(recorded_graphs.recordings) == 2


@pytest.mark.requires_cuda
def test_results_belong_to_the_caller(folder: Path, scene_images: list[Image.Image]) -> None:
    encoder = load_encoder("torch", folder, "cuda", "f32")
    pixels = stack_pixels(scene_images[:4], encoder.config.vision.image_size)
    with recording_soon():
        for each in pixels:
            encoder.encode(each[None])
    first = encoder.encode(pixels[:1])
    before = first.clone()
    encoder.encode(pixels[1:2])
    assert torch.equal(first, before)


@pytest.mark.requires_cuda
def test_f16_is_close(folder: Path, reference: Reference, scene_images: list[Image.Image]) -> None:
    encoder = load_encoder("torch", folder, "cuda")
    assert encoder.dtype == "f16"
    embeds = encoder.encode(stack_pixels(scene_images[:16], encoder.config.vision.image_size))
    assert relative_error(embeds.cpu(), reference.embed(scene_images[:16])) < 5e-3


def test_f32_convolutions_are_not_tf32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_encoder("torch", folder, "cpu", "f32")
    assert not torch.backends.cudnn.allow_tf32


def test_f32_passes_the_check_of_a_build_on_a_gpu(
    folder: Path, reference: Reference, scene_images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here convolutions round as cuDNN's would: with TF32, the first build of a benchmark would be refused."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    encoder = load_encoder("torch", folder, "cpu", "f32")
    pixels = stack_pixels(scene_images[:2], encoder.config.vision.image_size)
    expected = reference.embed(scene_images[:2])

    def convolve(self: torch.nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if torch.backends.cudnn.allow_tf32:
            x, weight = in_tf32(x), in_tf32(weight)
        return F.conv2d(x, weight, bias, self.stride)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", convolve)
    tolerance = TOLERANCE["encoder"]["f32"]
    assert relative_error(encoder.encode(pixels), expected) < tolerance
    torch.backends.cudnn.allow_tf32 = True
    assert relative_error(encoder.encode(pixels), expected) > tolerance


def in_tf32(x: Tensor) -> Tensor:
    """The numbers with 10 bits after the point, as the tensor cores of a GPU read them."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_f16_is_for_gpus(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="f16 is for GPUs: build for a CPU with --dtype auto, bf16 or f32"):
        load_encoder("torch", folder, "cpu", "f16")


def test_unknown_runtime(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no encoder runtime 'jax': choose one of openvino, torch"):
        load_encoder("jax", folder)
