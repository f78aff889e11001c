# SPDX-License-Identifier: Apache-2.0
"""Every form of base64 that tools write is understood, and the limits hold for the file in it."""

import re
from base64 import b64encode, encodebytes, urlsafe_b64encode
from urllib.parse import quote

import numpy as np
import pytest

from blipstream.errors import InvalidImage
from blipstream.images import base64_text
from blipstream.images.limits import ImageLimits
from blipstream.images.pixels import load_pixels
from tests.conftest import SAMPLES
from tests.support.image_files import encode, ignore_pil_warnings
from tests.support.photographs import ENCODINGS
from tests.support.reference_pixels import SIDE

pytestmark = ignore_pil_warnings

BOOK = (SAMPLES / "a-book.jpg").read_bytes()
TEXTS = {  # how JSON can carry a file
    "data URL": b"data:image/jpeg;base64," + b64encode(BOOK),
    "data URL with parameters": b"DATA:image/jpeg;name=a-book.jpg; BASE64," + b64encode(BOOK),
    "data URL without a type": b"data:;base64," + b64encode(BOOK),
    "unpadded data URL": b"data:image/jpeg;base64," + b64encode(BOOK).rstrip(b"="),
    "wrapped data URL": b"data:image/jpeg;base64," + encodebytes(BOOK),
    "escaped data URL": b"data:image/jpeg;base64," + quote(b64encode(BOOK), safe="").encode(),
    "URL-safe data URL": b"data:image/jpeg;base64," + urlsafe_b64encode(BOOK),
    "base64": b64encode(BOOK),
    "wrapped base64": encodebytes(BOOK).replace(b"\n", b"\r\n"),
    "URL-safe base64, unpadded": urlsafe_b64encode(BOOK).rstrip(b"="),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_form_of_base64(text: bytes) -> None:
    assert b64encode(BOOK).endswith(b"=")
    assert {b"+", b"/"} < {bytes([byte]) for byte in b64encode(BOOK)}
    assert np.array_equal(load_pixels(text, 64), load_pixels(BOOK, 64))
    load_pixels(text, 64, limits=ImageLimits(max_bytes=len(BOOK)))
    with pytest.raises(InvalidImage, match=f"must have at most {len(BOOK) - 1:,} bytes, not {len(BOOK):,}"):
        load_pixels(text, 64, limits=ImageLimits(max_bytes=len(BOOK) - 1))


def test_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64_text, "b64decode", lambda *_, **__: pytest.fail("it was decoded"))
    for start in (b"data:;base64,", b""):
        with pytest.raises(InvalidImage, match="at most 33,554,432 bytes, not 33,554,433"):
            load_pixels(start + b"/9j/" + b"A" * (2**27 // 3 - 2), 64)


@pytest.mark.parametrize("name", ENCODINGS)
def test_base64_of_every_encoding(name: str) -> None:
    """Base64 is recognized by its first characters, and no file begins with those."""
    image, kind, options = ENCODINGS[name]
    data = encode(image.resize((40, 30)), kind, **options)
    np.testing.assert_array_equal(load_pixels(b64encode(data), SIDE), load_pixels(data, SIDE))
    assert not re.match(rb"[\w/+-]{8}", data)


BEGIN = "a data URL must begin like data:image/jpeg;base64, but it begins with"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (b"data:image/png,abc", f"{BEGIN} b'data:image/png,abc'"),
        (b"data:", f"{BEGIN} b'data:'"),
        (b"data:image/png;base64,abc@", "complete base64, but its 26 bytes are not (Only base64 data is allowed): "),
        (b"data:image/png;base64,abcd=abc", "complete base64, but its 30 bytes are not ("),
        (b"data:text/plain;base64," + b64encode(b"hello there"), "its 11 bytes start with 68 65 6c 6c 6f"),
        (b"data:" + b"\xff" * 5000, rf"{BEGIN} b'data:\xff"),
    ],
)
def test_bad_data_url(url: bytes, message: str) -> None:
    with pytest.raises(InvalidImage, match=re.escape(message)) as caught:
        load_pixels(url, 224)
    assert len(str(caught.value)) < 160
