# SPDX-License-Identifier: Apache-2.0
"""Answers about any number of images, written to a file: `blipstream bulk`, `embed` and `filter`.

sources: finds the images, always in the same order, and pairs finds them with texts; tar, parquet and table look into
    files.
task: what is asked about an image, and what its rows have; caption, embed and filter are the three.
worker: makes the output rows of each image, as the task says; transport holds its server to what it served at first.
runner: asks about as many images at once as the server takes, and writes the rows in order.
sinks: writes the file, and reads what an interrupted run has left of it.
job: puts them together.
report: the page of `filter`.
"""
