# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with a checkpoint, found before anything is made of it: each part alone, and with the others.

If a file is missing or contradicts another, transformers makes something up, and would make up the same for the
comparison after the build. So parts are judged by what is known of BLIP, never by what transformers says. All checks
raise ArtifactError.
"""

BASE = "Salesforce/blip-image-captioning-base"
CAPTIONER, RETRIEVER = "BlipForConditionalGeneration", "BlipForImageTextRetrieval"  # what config.json calls them
SETTINGS = "config.json"


def reason(exc: Exception) -> str:
    """The text of another library's error, in one short line."""
    return " ".join(str(exc).split())[:120]


def listed(names: list[str]) -> str:
    """The first three of many names."""
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
