# SPDX-License-Identifier: Apache-2.0
"""Matching: image_embeds and texts in, how well they match and their embeddings out."""

from blipstream.matching.job import Job
from blipstream.matching.matcher import Matcher

__all__ = ["Job", "Matcher"]
