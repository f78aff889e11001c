# SPDX-License-Identifier: Apache-2.0
"""`blipstream calibrate`: a temperature and a threshold for a matcher, from pairs that people have labelled.

command.py   the options, and the run
pairs.py     the file of pairs
logits.py    what the matcher says of them
fit.py       the temperature and the threshold
figures.py   how good they are
chart.py     the picture of that
"""
