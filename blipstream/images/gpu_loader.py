# SPDX-License-Identifier: Apache-2.0
"""Many encoded images to pixels at once, on a GPU: nvImageCodec decodes JPEG files there, torch resizes them.

Resizing equals PIL's to the last bit. Decoding may differ by a level here and there, since nvJPEG and
libjpeg-turbo are free to round in ways of their own. Whatever is no common JPEG file, or does not decode, takes the
way over the CPU, which knows all formats and words all errors.
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
from blipstream.images.gpu_resize import can_resize, resize
from blipstream.images.loader import ImageLoader, Quick
from blipstream.images.pixels import (
    DEFAULT_LIMITS,
    RESIZE_MODES,
    START_OF_SCAN,
    TURNS,
    Box,
    Pixels,
    Slow,
    Turn,
    in_square,
    opened,
    orientation,
)

try:
    from nvidia import nvimgcodec
except ImportError as error:
    raise ServerError("decoding on a GPU needs nvImageCodec: pip install 'blipstream[gpu-decode]'") from error

BATCH_PIXELS = 2**26  # that are decoded together: 200 MB as bytes; one image of 100 million is 1.2 GB as f32

END_OF_IMAGE = b"\xff\xd9"


class _Job(NamedTuple):
    number: int  # among the images asked for
    stream: nvimgcodec.CodeStream
    turn: Turn | None
    box: Box  # of the upright picture, to be resized
    size: tuple[int, int]  # to this


class GPUImageLoader(ImageLoader):
    """Loads images on `device`; on "cpu", nvImageCodec's own CPU decoder takes the GPU's place."""

    def __init__(self, image_size: int, device: str) -> None:
        super().__init__(image_size)
        torch.set_float32_matmul_precision("highest")  # sums are exact in f32, not in TF32
        self._device = torch.device(device)
        if self._device.type == "cpu":
            device_id, backends = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, [nvimgcodec.CPU_ONLY]
        else:
            device_id = self._device.index or 0
            backends = [nvimgcodec.HW_GPU_ONLY, nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU]
        self._decoder = nvimgcodec.Decoder(
            device_id=device_id,
            backends=[nvimgcodec.Backend(kind) for kind in backends],
            options=":fancy_upsampling=1",  # of colors, as in libjpeg-turbo
        )
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False, sample_format=nvimgcodec.P_RGB)
        Image.new("RGB", (16, 16)).save(probe := BytesIO(), "JPEG")
        if None in self._decode([nvimgcodec.CodeStream(probe.getvalue())]):
            raise ServerError("nvImageCodec finds no nvJPEG here: pip install 'blipstream[gpu-decode]'")

    def load_quick(self, images: Sequence[bytes], modes: Sequence[str]) -> list[Quick]:
        """Each image's pixels, or why there are none; nothing for what may take long."""
        results: dict[int, Quick] = {}
        jobs = filter(None, map(self._plan, range(len(images)), images, modes))
        for batch in _batches(jobs):
            with suppress(RuntimeError):  # of a GPU without memory, say
                results |= self._load_batch(batch)
        rest = [index for index in range(len(images)) if index not in results]
        results |= zip(rest, super().load_quick([images[i] for i in rest], [modes[i] for i in rest]), strict=True)
        return [results[index] for index in range(len(images))]

    def _load_batch(self, batch: list[_Job]) -> dict[int, Pixels]:
        """The pixels of those that decode, by their numbers."""
        decoded = self._decode([job.stream for job in batch])
        resized = [  # all under way before the first is waited for
            (job.number, resize(_upright(pixels, job.turn), job.size, job.box).permute(1, 2, 0).contiguous())
            for job, pixels in zip(batch, decoded, strict=True)
            if pixels is not None
        ]
        return {number: in_square(pixels.cpu().numpy(), self.image_size) for number, pixels in resized}

    def _plan(self, number: int, data: bytes, mode: str) -> _Job | None:
        """What to do with an image; None leaves it to the CPU, and whatever is wrong with it as well."""
        if mode not in RESIZE_MODES:
            return None
        try:
            with opened(data, DEFAULT_LIMITS, quick=True) as image:
                stream = nvimgcodec.CodeStream(data) if _is_common_jpeg(image, data) else None
                turn = TURNS.get(orientation(image))
        except (InvalidInput, Slow):
            return None
        if stream is None or (stream.width, stream.height) != image.size:
            return None
        width, height = image.size[::-1] if turn and turn.swaps_axes else image.size
        box, size = RESIZE_MODES[mode]((0, 0, width, height), self.image_size)
        return _Job(number, stream, turn, box, size) if can_resize((width, height), size, box) else None

    def _decode(self, streams: list[nvimgcodec.CodeStream]) -> list[Tensor | None]:
        """To uint8 [3, H, W]; None for what does not decode."""
        cuda_stream = 0 if self._device.type == "cpu" else torch.cuda.current_stream(self._device).cuda_stream
        images = self._decoder.decode(streams, params=self._params, cuda_stream=cuda_stream)
        return [None if image is None else self._tensor(image) for image in images]

    def _tensor(self, image: nvimgcodec.Image) -> Tensor:
        # nvImageCodec's DLPack wants a GPU even for what lies in the CPU's memory
        return torch.from_numpy(np.array(image)) if self._device.type == "cpu" else from_dlpack(image)


def _is_common_jpeg(image: ImageFile, data: bytes) -> bool:
    """Whether a GPU decodes it as a CPU does: grey or YCbCr, and not cut short, which nvJPEG may fill up with grey."""
    if not isinstance(image, JpegImageFile) or image.mode not in ("L", "RGB"):
        return False
    components = bytes(component for component, *_ in image.layer)
    is_rgb = components == b"RGB" or image.info.get("adobe_transform") == 0
    return not is_rgb and data.rfind(END_OF_IMAGE) > data.rfind(START_OF_SCAN)


def _batches(jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
    """Jobs in portions of at most BATCH_PIXELS, or of one."""
    batch: list[_Job] = []
    pixels = 0
    for job in jobs:
        size = job.stream.width * job.stream.height
        if batch and pixels + size > BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
        batch.append(job)
        pixels += size
    if batch:
        yield batch


def _upright(pixels: Tensor, turn: Turn | None) -> Tensor:
    """uint8 [3, H, W], turned."""
    if turn is None:
        return pixels
    if turn.swaps_axes:
        pixels = pixels.mT
    mirrored = (turn.mirrors_rows, turn.mirrors_columns)
    return pixels.flip([axis for axis, is_mirrored in enumerate(mirrored, start=1) if is_mirrored])
