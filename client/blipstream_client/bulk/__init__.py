# SPDX-License-Identifier: Apache-2.0
"""Captions for any number of images, into a file: `blipstream bulk`.

sources: what images there are, in an order that does not change; tar and parquet: those in shards.
sinks: where rows go, and what a file that was left half-written holds.
runner: from one to the other, with as many requests in flight as the server likes.
"""
