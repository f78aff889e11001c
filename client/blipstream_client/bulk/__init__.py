# SPDX-License-Identifier: Apache-2.0
"""Captions for any number of images, written to a file: `blipstream bulk`.

sources: finds the images, always in the same order; tar and parquet find those in shards.
captioner: makes an output row of each image.
runner: has as many images captioned at once as the server takes, and writes the rows in order.
sinks: writes the file, and reads what an interrupted run has left of it.
job: puts them together.
"""
