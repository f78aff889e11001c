# SPDX-License-Identifier: Apache-2.0
"""Which of the user's images calibrate an encoder in 8 bits, and which check it."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from blipstream.errors import ArtifactError
from blipstream_build import calibration_images
from blipstream_build.calibration_images import CalibrationImages

SIDE = 4  # pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images of one colour each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_half_calibrates_and_the_others_check(folder: Path) -> None:
    images = CalibrationImages.find(folder)
    assert (len(images.calibrating), len(images.checking)) == (10, 10)
    assert {*images.calibrating, *images.checking} == set(folder.iterdir())
    calibrating, checking = images.load(SIDE)
    assert [image[0, 0, 0] for image in (*calibrating, *checking)] == [
        int(file.stem) for file in images.calibrating + images.checking
    ]


def test_not_all_of_many_images_are_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_images, "MOST_CALIBRATING", 3)
    monkeypatch.setattr(calibration_images, "MOST_CHECKING", 11)
    images = CalibrationImages.find(folder)
    assert (len(images.calibrating), len({*images.calibrating, *images.checking})) == (3, 14)


def test_names_and_copies_do_not_count(folder: Path) -> None:
    before = CalibrationImages.find(folder)
    for number in range(20):
        (folder / f"{number}.png").rename(folder / f"photo {19 - number}.PNG")
    shutil.copy(folder / "photo 0.PNG", folder / "copy.png")
    for other in (".hidden.png", "captions.json", "README"):
        (folder / other).write_bytes(b"no image")
    (folder / "folder.png").mkdir()
    assert CalibrationImages.find(folder).digest == before.digest


def test_contents_count(folder: Path) -> None:
    before = CalibrationImages.find(folder)
    Image.new("RGB", (SIDE, SIDE), (0, 0, 9)).save(folder / "7.png")
    assert CalibrationImages.find(folder).digest != before.digest


def test_too_few(folder: Path) -> None:
    for number in range(15):
        shutil.copy(folder / "19.png", folder / f"{number}.png")
    with pytest.raises(ArtifactError) as caught:
        CalibrationImages.find(folder)
    assert str(caught.value) == (
        f"{folder} must have at least 16 different images to calibrate and check on, and has 5: add some like those "
        "that you caption"
    )


def test_what_cannot_be_decoded_is_named(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"<svg>")
    (folder / "photo.heic").write_bytes(b"....ftypheic")
    with pytest.raises(ArtifactError) as caught:
        CalibrationImages.find(folder).load(SIDE)
    assert str(caught.value) == (f"2 of the images in {folder} cannot be decoded (3.png, photo.heic): remove them")
    for number in range(4, 9):
        (folder / f"{number}.png").write_bytes(b"%d" % number)
    with pytest.raises(ArtifactError, match=r"7 of the images .*\(3\.png, 4\.png, 5\.png, 6\.png, 7\.png, \.\.\.\)"):
        CalibrationImages.find(folder).load(SIDE)


def test_no_folder(folder: Path) -> None:
    for wrong, reason in ((folder / "none", "No such file or directory"), (folder / "1.png", "Not a directory")):
        with pytest.raises(ArtifactError) as caught:
            CalibrationImages.find(wrong)
        assert str(caught.value) == f"{wrong} cannot be read: {reason}"
