# SPDX-License-Identifier: Apache-2.0
"""The user's images on which an encoder in 8 bits is calibrated and checked."""

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blipstream.errors import ArtifactError, InvalidImage

# What takes time to import is imported where it is used: `find` needs none of it
if TYPE_CHECKING:
    from blipstream.images.shapes import Pixels

FEWEST = 16  # images that a folder must have
MOST_CALIBRATING, MOST_CHECKING = 32, 256  # more are not used
NAMED = 5  # images, in an error


@dataclass(frozen=True)
class CalibrationImages:
    """Two sets of files that share no image."""

    calibrating: tuple[Path, ...]
    checking: tuple[Path, ...]
    digest: str  # of the contents of all of them

    @classmethod
    def find(cls, folder: Path) -> "CalibrationImages":
        """Choose from a folder's image files: up to half of them, at most 32, calibrate, and at most 256 others check.

        They are taken in the order of their contents' hashes: at random, but always the same. Copies count once.

        Raises ArtifactError if the folder cannot be read, or has too few images.
        """
        try:
            files = [file for file in sorted(folder.iterdir()) if _is_named_as_image(file)]
            found = sorted({hashlib.sha256(file.read_bytes()).hexdigest(): file for file in files}.items())
        except OSError as exc:
            raise ArtifactError(f"{exc.filename or folder} cannot be read: {exc.strerror}") from exc
        if len(found) < FEWEST:
            raise ArtifactError(
                f"{folder} must have at least {FEWEST} different images to calibrate and check on, and has "
                f"{len(found)}: add some like those that you caption"
            )
        half = min(MOST_CALIBRATING, len(found) // 2)
        used = found[: half + MOST_CHECKING]
        digest = hashlib.sha256("".join(each for each, _ in used).encode()).hexdigest()
        paths = tuple(path for _, path in used)
        return cls(paths[:half], paths[half:], digest)

    def load(self, image_size: int) -> tuple["Pixels", "Pixels"]:
        """Those that calibrate and those that check, as uint8 pixels [B, image_size, image_size, 3].

        Raises ArtifactError that names those which cannot be decoded.
        """
        import numpy as np

        from blipstream.images.pixels import load_pixels

        pixels, refused = [], []
        for path in self.calibrating + self.checking:
            try:
                pixels.append(load_pixels(path.read_bytes(), image_size))
            except (InvalidImage, OSError):
                refused.append(path.name)
        if refused:
            names = ", ".join(sorted(refused)[:NAMED]) + (", ..." if len(refused) > NAMED else "")
            raise ArtifactError(
                f"{len(refused)} of the images in {self.calibrating[0].parent} cannot be decoded ({names}): remove them"
            )
        half = len(self.calibrating)
        return np.stack(pixels[:half]), np.stack(pixels[half:])


def _is_named_as_image(file: Path) -> bool:
    kind, _ = mimetypes.guess_type(file.name, strict=False)
    return (kind or "").startswith("image/") and not file.name.startswith(".") and file.is_file()
