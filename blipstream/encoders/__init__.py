# SPDX-License-Identifier: Apache-2.0
"""The vision encoder on each runtime, called alike."""
