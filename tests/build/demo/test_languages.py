# SPDX-License-Identifier: Apache-2.0
"""The grammar of the demo's other languages, against sentences written by hand."""

import random

import pytest
from transformers import AutoTokenizer

from languages import CAPTIONS
from languages.tokenizer import new_tokenizer
from scenes import ARRANGEMENTS, BACKGROUNDS, OBJECTS, Arrangement, Description, random_scene
from tests.conftest import CHECKPOINT

EXPECTED: dict[tuple[Arrangement, tuple[str, ...], str], dict[str, str]] = {
    ("one", ("egg",), "white"): {
        "fr": "un œuf sur un fond blanc",
        "de": "ein Ei auf weißem Hintergrund",
        "es": "un huevo sobre un fondo blanco",
        "ja": "白い背景に卵がある",
        "zh": "白色背景上有一个鸡蛋",
    },
    ("two", ("lion",), "purple"): {
        "fr": "deux lions sur un fond violet",
        "de": "zwei Löwen auf lila Hintergrund",
        "es": "dos leones sobre un fondo morado",
        "ja": "紫の背景にライオンが二頭いる",
        "zh": "紫色背景上有两头狮子",
    },
    ("two", ("snowman",), "brown"): {
        "fr": "deux bonshommes de neige sur un fond marron",
        "de": "zwei Schneemänner auf braunem Hintergrund",
        "es": "dos muñecos de nieve sobre un fondo marrón",
        "ja": "茶色い背景に雪だるまが二つある",
        "zh": "棕色背景上有两个雪人",
    },
    ("left", ("cat", "elephant"), "green"): {
        "fr": "un chat à gauche d'un éléphant sur un fond vert",
        "de": "eine Katze links von einem Elefanten auf grünem Hintergrund",
        "es": "un gato a la izquierda de un elefante sobre un fondo verde",
        "ja": "緑の背景で、ゾウの左にネコがいる",
        "zh": "绿色背景上，一只猫在一头大象的左边",
    },
    ("left", ("lion", "lion"), "grey"): {
        "fr": "un lion à gauche d'un lion sur un fond gris",
        "de": "ein Löwe links von einem Löwen auf grauem Hintergrund",
        "es": "un león a la izquierda de un león sobre un fondo gris",
        "ja": "灰色の背景で、ライオンの左にライオンがいる",
        "zh": "灰色背景上，一头狮子在一头狮子的左边",
    },
    ("above", ("book", "door"), "pink"): {
        "fr": "un livre au-dessus d'une porte sur un fond rose",
        "de": "ein Buch über einer Tür auf rosa Hintergrund",
        "es": "un libro encima de una puerta sobre un fondo rosa",
        "ja": "ピンクの背景で、ドアの上に本がある",
        "zh": "粉色背景上，一本书在一扇门的上方",
    },
    ("above", ("anchor", "house"), "yellow"): {
        "fr": "une ancre au-dessus d'une maison sur un fond jaune",
        "de": "ein Anker über einem Haus auf gelbem Hintergrund",
        "es": "un ancla encima de una casa sobre un fondo amarillo",
        "ja": "黄色い背景で、家の上に錨がある",
        "zh": "黄色背景上，一个锚在一座房子的上方",
    },
    ("two", ("owl",), "blue"): {
        "fr": "deux chouettes sur un fond bleu",
        "de": "zwei Eulen auf blauem Hintergrund",
        "es": "dos búhos sobre un fondo azul",
        "ja": "青い背景にフクロウが二羽いる",
        "zh": "蓝色背景上有两只猫头鹰",
    },
}


@pytest.mark.parametrize("language", CAPTIONS)
def test_sentences(language: str) -> None:
    answers = {what: CAPTIONS[language](Description(*what)) for what in EXPECTED}
    assert answers == {what: sentences[language] for what, sentences in EXPECTED.items()}


@pytest.mark.parametrize("language", CAPTIONS)
def test_descriptions_differ_in_every_language(language: str) -> None:
    descriptions = [Description("one", ("cat",), background) for background in BACKGROUNDS if background != "blue"]
    for name in OBJECTS:
        descriptions += [
            Description("one", (name,), "blue"),
            Description("two", (name,), "blue"),
            Description("left", ("cat", name), "blue"),
            Description("above", (name, "cat"), "blue"),
        ]
    assert len({CAPTIONS[language](each) for each in descriptions}) == len(descriptions)


@pytest.mark.parametrize("language", CAPTIONS)
def test_tokenizer(language: str) -> None:
    """A caption is of new tokens alone, and reads back as it was. The base's tokens are as they were."""
    rng = random.Random(0)
    captions = [CAPTIONS[language](random_scene(rng, rng.choice(ARRANGEMENTS)).description) for _ in range(100)]
    base = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer = new_tokenizer(base, language, captions)
    for caption in captions:
        ids = tokenizer.encode(caption, add_special_tokens=False)
        assert min(ids) >= len(base)
        assert tokenizer.decode(ids) == caption
    assert base.get_vocab().items() <= tokenizer.get_vocab().items()
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
