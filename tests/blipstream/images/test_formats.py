# SPDX-License-Identifier: Apache-2.0
"""Every kind of file is told by its first bytes."""

import pytest

from blipstream.errors import InvalidImage
from blipstream.images.formats import FORMATS, identify
from tests.support.image_files import encode
from tests.support.photographs import ENCODINGS

NAMES = {"jpeg": "JPEG", "mpo": "JPEG", "png": "PNG", "webp": "WebP", "bmp": "BMP", "gif": "GIF", "tiff": "TIFF"}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_is_identified(name: str) -> None:
    image, kind, options = ENCODINGS[name]
    assert identify(encode(image, kind, **options)) == NAMES[name.split()[0]]


def test_error_names_every_format() -> None:
    with pytest.raises(InvalidImage) as caught:
        identify(b"")
    assert all(name in str(caught.value) for name in FORMATS)


def test_a_single_byte_is_one() -> None:
    with pytest.raises(InvalidImage, match="file, but its only byte is 78: send the bytes of such a file"):
        identify(b"x")
