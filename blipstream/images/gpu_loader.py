# SPDX-License-Identifier: Apache-2.0
"""Loads images on a GPU: nvImageCodec decodes JPEG files there, and torch resizes them.

Resizing equals PIL's to the last bit. Decoding may differ by a level here and there, since nvJPEG and libjpeg-turbo
round differently. The CPU loads everything else: other formats, rare kinds of JPEG, and files that do not decode, so
that errors read the same everywhere.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from blipstream.errors import InvalidInput, ServerError
from blipstream.images.decode import open_image
from blipstream.images.gpu_resize import can_resize, resize
from blipstream.images.limits import DEFAULT_LIMITS, START_OF_SCAN, MayBeSlow
from blipstream.images.loader import ImageLoader, Loaded
from blipstream.images.orientation import Turn, turn_of
from blipstream.images.resize import RESIZE_MODES, pad_to_square
from blipstream.images.shapes import Box, Pixels, Size

try:
    from nvidia import nvimgcodec
except ImportError as error:
    raise ServerError("decoding on a GPU needs nvImageCodec: install the extra gpu-decode of the wheel") from error

MAX_BATCH_PIXELS = 2**26  # decoded together: 200 MB as bytes

END_OF_IMAGE = b"\xff\xd9"  # JPEG's marker


class _Job(NamedTuple):
    """One image to decode and resize on the GPU."""

    position: int  # among the images that were asked for
    stream: nvimgcodec.CodeStream
    turn: Turn | None
    box: Box  # the part of the upright picture to resize
    size: Size  # the size to resize it to


class GPUImageLoader(ImageLoader):
    """Loads images on `device`. On "cpu", nvImageCodec decodes with its own CPU decoder."""

    def __init__(self, image_size: int, device: str) -> None:
        super().__init__(image_size)
        torch.set_float32_matmul_precision("highest")  # f32 sums are exact, TF32 ones are not
        self._device = torch.device(device)
        if self._device.type == "cpu":
            device_id, backends = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, [nvimgcodec.CPU_ONLY]
        else:
            device_id = self._device.index or 0
            backends = [nvimgcodec.HW_GPU_ONLY, nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU]
        self._decoder = nvimgcodec.Decoder(
            device_id=device_id,
            backends=[nvimgcodec.Backend(kind) for kind in backends],
            options=":fancy_upsampling=1",  # upsample colors as libjpeg-turbo does
        )
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False, sample_format=nvimgcodec.P_RGB)
        Image.new("RGB", (16, 16)).save(probe := BytesIO(), "JPEG")
        if None in self._decode([nvimgcodec.CodeStream(probe.getvalue())]):
            raise ServerError("nvImageCodec finds no nvJPEG here: install the extra gpu-decode of the wheel")

    def load_quick(self, images: Sequence[bytes], modes: Sequence[str]) -> list[Loaded | None]:
        """Each image's pixels or error; None if it may be slow."""
        results: dict[int, Loaded | None] = {}
        jobs = filter(None, map(self._create_job, range(len(images)), images, modes))
        for batch in _batches(jobs):
            with suppress(RuntimeError):  # the GPU is out of memory, say: the CPU loads this batch
                results |= self._load_batch(batch)
        rest = [index for index in range(len(images)) if index not in results]
        results |= zip(rest, super().load_quick([images[i] for i in rest], [modes[i] for i in rest]), strict=True)
        return [results[index] for index in range(len(images))]

    def _load_batch(self, batch: list[_Job]) -> dict[int, Pixels]:
        """The pixels of each image that decodes, by its index."""
        decoded = self._decode([job.stream for job in batch])
        resized = [  # the GPU has all of this work before the first result is waited for
            (job.position, resize(_upright(pixels, job.turn), job.size, job.box).permute(1, 2, 0).contiguous())
            for job, pixels in zip(batch, decoded, strict=True)
            if pixels is not None
        ]
        return {position: pad_to_square(pixels.cpu().numpy(), self.image_size) for position, pixels in resized}

    def _create_job(self, position: int, data: bytes, mode: str) -> _Job | None:
        """None if the CPU has to load the image, or to refuse it."""
        if mode not in RESIZE_MODES:
            return None
        try:
            with open_image(data, DEFAULT_LIMITS, quick=True) as image:
                stream = nvimgcodec.CodeStream(data) if _is_common_jpeg(image, data) else None
                turn = turn_of(image)
        except (InvalidInput, MayBeSlow):
            return None
        if stream is None or (stream.width, stream.height) != image.size:
            return None
        width, height = image.size[::-1] if turn and turn.swaps_axes else image.size
        box, size = RESIZE_MODES[mode]((0, 0, width, height), self.image_size)
        return _Job(position, stream, turn, box, size) if can_resize((width, height), size, box) else None

    def _decode(self, streams: list[nvimgcodec.CodeStream]) -> list[Tensor | None]:
        """Each image as uint8 [3, H, W]; None if it does not decode."""
        cuda_stream = 0 if self._device.type == "cpu" else torch.cuda.current_stream(self._device).cuda_stream
        images = self._decoder.decode(streams, params=self._params, cuda_stream=cuda_stream)
        return [None if image is None else self._tensor(image) for image in images]

    def _tensor(self, image: nvimgcodec.Image) -> Tensor:
        # nvImageCodec's DLPack needs a GPU even for an image in the CPU's memory
        return torch.from_numpy(np.array(image)) if self._device.type == "cpu" else from_dlpack(image)


def _is_common_jpeg(image: ImageFile, data: bytes) -> bool:
    """Whether a GPU decodes a file as a CPU does: grey or YCbCr, and whole, since nvJPEG may fill what is cut off."""
    if not isinstance(image, JpegImageFile) or image.mode not in ("L", "RGB"):
        return False
    components = bytes(component for component, *_ in image.layer)
    is_rgb = components == b"RGB" or image.info.get("adobe_transform") == 0
    return not is_rgb and data.rfind(END_OF_IMAGE) > data.rfind(START_OF_SCAN)


def _batches(jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
    """Jobs in batches of at most MAX_BATCH_PIXELS; a larger image is a batch of its own."""
    batch: list[_Job] = []
    pixels = 0
    for job in jobs:
        size = job.stream.width * job.stream.height
        if batch and pixels + size > MAX_BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
        batch.append(job)
        pixels += size
    if batch:
        yield batch


def _upright(pixels: Tensor, turn: Turn | None) -> Tensor:
    """Turn uint8 [3, H, W]."""
    if turn is None:
        return pixels
    if turn.swaps_axes:
        pixels = pixels.mT
    flips = (turn.flips_y, turn.flips_x)
    return pixels.flip([axis for axis, is_flipped in enumerate(flips, start=1) if is_flipped])
