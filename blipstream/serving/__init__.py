# SPDX-License-Identifier: Apache-2.0
"""What a model.py needs around the engine. Triton's pb_utils is handed in, never imported."""
