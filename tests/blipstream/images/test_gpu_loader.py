# SPDX-License-Identifier: Apache-2.0
"""The GPU's loader gives the CPU's pixels.

Where there is no GPU, nvImageCodec's CPU decoder and torch on the CPU take the same path. That decoder is
libjpeg-turbo, as PIL's is, so the pixels are equal to the last bit.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blipstream.errors import BlipstreamError, InvalidInput
from blipstream.images.gpu_resize import resize
from blipstream.images.loader import Loaded
from blipstream.images.pixels import load_pixels
from blipstream.images.resize import RESIZE_MODES
from blipstream.images.shapes import Box, Pixels, Size
from tests.support.bad_images import BAD_IMAGES
from tests.support.image_files import EXIF_ORIENTATIONS, encode, exif_tags, noise
from tests.support.image_loading import load_each
from tests.support.photographs import ASTRONAUT, CHINA, ENCODINGS, FLOWER

pytest.importorskip("nvidia.nvimgcodec", reason="pip install nvidia-nvimgcodec-cu13")

from blipstream.images import gpu_loader
from blipstream.images.gpu_loader import GPUImageLoader

SIDE = 96
DECODED_ON_GPU = {"jpeg", "jpeg progressive", "jpeg 4:4:4", "jpeg grey", "mpo"}


@pytest.fixture(scope="module")
def loader() -> GPUImageLoader:
    return GPUImageLoader(SIDE, "cpu")


@pytest.fixture
def decoded(loader: GPUImageLoader, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of nvImageCodec decoded."""
    counts = []
    decode = loader._decode

    def count(streams: Any) -> Any:
        counts.append(len(streams))
        return decode(streams)

    monkeypatch.setattr(loader, "_decode", count)
    return counts


def assert_loaded(result: Loaded, expected: Pixels) -> None:
    assert not isinstance(result, BlipstreamError)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_every_encoding_in_one_batch(loader: GPUImageLoader, decoded: list[int], mode: str) -> None:
    files = [encode(image, kind, **options) for image, kind, options in ENCODINGS.values()]
    loaded = load_each(loader, files, [mode] * len(files))
    assert decoded == [len(DECODED_ON_GPU)]
    for file, pixels in zip(files, loaded, strict=True):
        assert_loaded(pixels, load_pixels(file, SIDE, mode))


@pytest.mark.parametrize("orientation", EXIF_ORIENTATIONS)
def test_orientation_is_applied_once(loader: GPUImageLoader, decoded: list[int], orientation: int) -> None:
    file = encode(CHINA, "JPEG", exif=exif_tags(orientation))
    assert_loaded(load_each(loader, [file], ["center_crop"])[0], load_pixels(file, SIDE, "center_crop"))
    assert decoded == [1]


def test_bad_images_fail_alone(loader: GPUImageLoader) -> None:
    good = encode(FLOWER, "JPEG")
    images = [file for bad in BAD_IMAGES.values() for file in (bad.data, good)]
    loaded = load_each(loader, images)
    expected = load_pixels(good, SIDE)
    for bad, refused, pixels in zip(BAD_IMAGES.values(), loaded[::2], loaded[1::2], strict=True):
        with pytest.raises(InvalidInput) as caught:
            load_pixels(bad.data, SIDE)
        assert isinstance(refused, InvalidInput)
        assert str(refused) == str(caught.value)
        assert_loaded(pixels, expected)


def test_unknown_resize_mode_is_refused(loader: GPUImageLoader) -> None:
    (refused,) = load_each(loader, [encode(FLOWER, "JPEG")], ["zoom"])
    assert str(refused).startswith("resize_mode must be one of")


def cut_short() -> bytes:
    """A file whose thumbnail is whole."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = encode(FLOWER.resize((16, 16)), "JPEG")
    file = encode(FLOWER, "JPEG", exif=exif)
    return file[: len(file) * 3 // 4]


LEFT_TO_THE_CPU = {
    "cut short": cut_short(),
    "red, green and blue": encode(CHINA, "JPEG", keep_rgb=True),
    "cmyk": encode(CHINA.convert("CMYK"), "JPEG"),
    "long": encode(CHINA.resize((3000, 20)), "JPEG"),
    "png": encode(CHINA, "PNG"),
}


@pytest.mark.parametrize("name", LEFT_TO_THE_CPU)
def test_left_to_the_cpu(loader: GPUImageLoader, decoded: list[int], name: str) -> None:
    file = LEFT_TO_THE_CPU[name]
    (loaded,) = load_each(loader, [file])
    assert decoded == []
    assert isinstance(loaded, InvalidInput) is (name == "cut short")


def test_bytes_after_the_end_are_ignored(loader: GPUImageLoader, decoded: list[int]) -> None:
    file = encode(CHINA, "JPEG")
    assert_loaded(load_each(loader, [file + b"more"])[0], load_pixels(file, SIDE))
    assert decoded == [1]


def test_batches_are_bounded(loader: GPUImageLoader, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_loader, "MAX_BATCH_PIXELS", 5 * 100 * 100)
    files = [encode(noise(100, 100, i), "JPEG") for i in range(12)]
    files.insert(3, encode(ASTRONAUT, "JPEG"))  # larger than a batch
    loaded = load_each(loader, files)
    assert decoded == [3, 1, 5, 4]
    for file, pixels in zip(files, loaded, strict=True):
        assert_loaded(pixels, load_pixels(file, SIDE))


def test_the_cpu_loads_a_batch_that_fails(loader: GPUImageLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other batches stay on the GPU."""
    files = [encode(image, "JPEG") for image in (CHINA, ASTRONAUT, FLOWER)]
    batches = []

    def fail_if_square(pixels: Tensor, size: Size, box: Box) -> Tensor:
        batches.append(pixels.shape)
        if pixels.shape[1] == pixels.shape[2]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return resize(pixels, size, box)

    monkeypatch.setattr(gpu_loader, "MAX_BATCH_PIXELS", 1)
    monkeypatch.setattr(gpu_loader, "resize", fail_if_square)
    loaded = load_each(loader, files)
    assert len(batches) == len(files)
    for file, pixels in zip(files, loaded, strict=True):
        assert_loaded(pixels, load_pixels(file, SIDE))


@pytest.mark.requires_cuda
def test_gpu_is_close_to_the_cpu() -> None:
    """nvJPEG may round differently from libjpeg-turbo; everything after it is exact."""
    on_gpu = GPUImageLoader(384, "cuda:0")
    images = [CHINA, FLOWER, ASTRONAUT]
    files = [encode(image, "JPEG", quality=90, subsampling=s) for image in images for s in (0, 1, 2)]
    for file, pixels in zip(files, load_each(on_gpu, files), strict=True):
        assert not isinstance(pixels, BlipstreamError)
        difference = np.abs(pixels.astype(int) - load_pixels(file, 384))
        assert difference.mean() < 0.5
        assert difference.max() <= 8
