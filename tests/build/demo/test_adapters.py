# SPDX-License-Identifier: Apache-2.0
"""The committed adapters: each speaks its language on scenes that it has never seen."""

import shutil
from pathlib import Path

import pytest

from blipstream.decoding.engine import Engine
from blipstream.files import DEMO_ADAPTERS
from blipstream.options import DecodingOptions
from blipstream_build.adapters import install
from blipstream_build.adapters.base import Base
from languages import CAPTIONS
from scenes import examination
from tests.reference import Reference

LETTERS = {"de": "üß", "es": "áñ", "fr": "éœà", "ja": "が、左", "zh": "，左"}  # that no caption in English has


@pytest.fixture(scope="module")
def engine(f32_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The demo checkpoint with all its adapters."""
    repository = shutil.copytree(f32_artifacts, tmp_path_factory.mktemp("adapters") / "repository")
    install.add(repository, install.find_adapters((each, DEMO_ADAPTERS / each) for each in CAPTIONS), Base())
    return Engine.load(repository / "decoder/1/artifact")


@pytest.mark.parametrize(("size", "pass_mark"), [(40, 0.95), pytest.param(500, 0.97, marks=pytest.mark.full)])
def test_accuracy(engine: Engine, reference: Reference, size: int, pass_mark: float) -> None:
    """All languages and English are asked for at once, so their captions grow together."""
    scenes = list(examination(size))
    requests = {}
    for start in range(0, size, 20):
        some = scenes[start : start + 20]
        for scene, image_embeds in zip(some, reference.embed([scene.draw(384) for scene in some]), strict=True):
            for language in ("", *CAPTIONS):
                requests[language, scene] = engine.request(image_embeds, DecodingOptions(adapter=language))
    engine.generate(requests.values())
    for language in ("", *CAPTIONS):
        expected = CAPTIONS.get(language, str)
        answers = [requests[language, each].captions[0].text for each in scenes]
        right = sum(answer == expected(each.description) for answer, each in zip(answers, scenes, strict=True))
        assert right >= pass_mark * size, language
        assert set(LETTERS.get(language, "")) <= set("".join(answers))


def test_size() -> None:
    for language in CAPTIONS:
        assert sum(path.stat().st_size for path in (DEMO_ADAPTERS / language).iterdir()) <= 1e6
