# SPDX-License-Identifier: Apache-2.0
"""`blipstream demo`: the demo's two checkpoints on a real Triton server, for those who want to see it work.

command.py         the options, and the run
answers.py         what the server answers, and tables of it
contact_sheet.py   pictures of images with words beneath, one of which the README shows
heatmaps.py        the picture of a caption's heatmaps
"""
