# SPDX-License-Identifier: Apache-2.0
"""Blipstream: exact, fast BLIP image captioning, served by Triton."""
