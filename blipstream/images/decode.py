# SPDX-License-Identifier: Apache-2.0
"""Opens image files with PIL, within limits. Whatever is wrong with a file becomes one InvalidImage."""

import ctypes
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image, _imaging
from PIL.ImageFile import ImageFile

from blipstream.errors import InvalidImage
from blipstream.images.base64_text import decode_text
from blipstream.images.formats import FORMATS, identify
from blipstream.images.limits import (
    DEFAULT_LIMITS,
    QUICK_SECONDS,
    BudgetedFile,
    ImageLimits,
    MayBeSlow,
    SetAlarm,
    TimeBudget,
    check_bytes,
    check_scans,
    check_size,
    decoding_budget,
)
from blipstream.images.messages import one_line
from blipstream.images.png_metadata import strip_metadata

# PIL warns of odd metadata, but a client's file must not fill the server's log. The filter is one for the process,
# since warnings.catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")
# libtiff writes a line for each fault, which in some files is one for each row of pixels.
with suppress(AttributeError):  # Pillow was built without libtiff, or hides its symbols
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
# Only libtiff can count the scans of a JPEG within a TIFF file.
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(DEFAULT_LIMITS.max_scans))
# Let PIL keep some blocks of 16 MB. Else it returns a large image's memory to the system and gets it back page by page.
Image.core.set_blocks_max(4)  # type: ignore[attr-defined]


@contextmanager
def open_image(
    data: bytes, limits: ImageLimits, *, quick: bool = False, set_alarm: SetAlarm | None = None
) -> Iterator[ImageFile]:
    """An image whose header is read and within limits; its pixels are not decoded yet.

    Every error in the block, PIL's included, becomes InvalidImage; only MayBeSlow, which `quick` allows, stays as it
    is. `set_alarm` is called twice: before the header is read, and once more when the size is known.
    """
    data = decode_text(data, limits)
    check_bytes(len(data), limits)
    kind = identify(data)
    budget = TimeBudget(QUICK_SECONDS if quick else limits.budget(len(data)), quick, set_alarm)
    with _translated_errors(kind, data):
        if kind == "PNG":
            data = strip_metadata(data, budget)
        image = FORMATS[kind].open(BudgetedFile(data, budget))
        check_size(image, limits)
        if kind == "JPEG":
            check_scans(image, data, limits)
        if not quick:
            budget.allow(decoding_budget(image, len(data), limits))
        yield image


@contextmanager
def _translated_errors(kind: str, data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises into InvalidImage. On bad data PIL raises nearly every built-in type."""
    try:
        yield
    except (InvalidImage, MayBeSlow):
        raise
    except Image.DecompressionBombError as exc:  # PIL's own limit on canvases and tiles, far above ours
        raise InvalidImage(f"image must have fewer pixels ({one_line(exc)}): scale it down") from exc
    except Exception as exc:
        raise InvalidImage(
            f"image must be a whole {kind} file, but its {len(data):,} bytes are cut short or damaged "
            f"({one_line(exc)}): send the file again in full, or save it again"
        ) from exc
