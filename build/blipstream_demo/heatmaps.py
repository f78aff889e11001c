# SPDX-License-Identifier: Apache-2.0
"""The picture of heatmaps, one for each word of a caption."""

import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from blipstream_client import Explanation

WORDS = "words"  # key of the PNG file's text: JSON, the words with the strongest patch of each
COLORS = 256  # which make the file a third as large


def save_heatmaps(explanation: Explanation, path: Path) -> None:
    """Write the explanation's strip as a PNG file. Its text chunk says what it shows, for a test to read."""
    text = PngInfo()
    text.add_text(WORDS, json.dumps(peaks(explanation)))
    picture = explanation.strip().quantize(COLORS, dither=Image.Dither.NONE)
    picture.save(path, "PNG", optimize=True, pnginfo=text)


def peaks(explanation: Explanation) -> list[list[str | int]]:
    """Each word, and the number of the patch that it looked at most, row by row."""
    strongest = explanation.attention.reshape(len(explanation.words), -1).argmax(1).tolist()
    return [[word, patch] for word, patch in zip(explanation.words, strongest, strict=True)]
