# SPDX-License-Identifier: Apache-2.0
"""`blipstream demo`: the demo checkpoint on a real Triton server, for those who want to see it work.

command.py         the options, and the run
answers.py         what the server answers, and a table of it
contact_sheet.py   the picture that the README shows
heatmaps.py        the picture of a caption's heatmaps
"""
