# SPDX-License-Identifier: Apache-2.0
"""What scenes are called in other languages, by the language's tag of BCP 47.

Names are CLDR's, less what they say of the picture ("cat face"). Each language has a file with its words and its
grammar. Its `caption` takes a description that names the background; otherwise there is a KeyError.
"""

from collections.abc import Callable

from languages import chinese, french, german, japanese, spanish
from scenes import Description

CAPTIONS: dict[str, Callable[[Description], str]] = {
    "de": german.caption,
    "es": spanish.caption,
    "fr": french.caption,
    "ja": japanese.caption,
    "zh": chinese.caption,
}
