# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: nobody waits for all of a large request, and all is read once."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blipstream.matching.job import Job, Row
from blipstream.matching.turns import BATCH_IMAGES, BATCH_TOKENS, REQUEST_TOKENS, Turns

IMAGE = np.zeros((4, 8), np.float16)


def text_job(*lengths: int, image: bool = True) -> Job:
    return Job([[1] * length for length in lengths], IMAGE if image else None)


def take_until(turns: Turns, job: Job) -> int:
    """How many batches are read before the one in which a job gets the last of its texts."""
    batches = 0
    while turns.take_batch() and not job.is_done:
        batches += 1
    return batches


Texts = tuple[list[int], bool]  # their lengths, and whether there is an image
TEXTS = st.tuples(st.lists(st.integers(2, 512), min_size=1, max_size=30), st.booleans())


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=5), max_size=10))
def test_all_is_read_once_within_the_bounds(given: list[list[Texts]]) -> None:
    turns, read = Turns(), Counter[tuple[Job, Row]]()
    requests = [[text_job(*lengths, image=image) for lengths, image in request] for request in given]
    for request in requests:
        turns.add(request)
    while batch := turns.take_batch():
        assert len({chunk.shape for chunk in batch}) == 1
        shape = batch[0].shape
        tokens = shape.rows * shape.tokens
        assert all(
            len(chunk.rows) <= shape.rows and row.length <= shape.tokens for chunk in batch for row in chunk.rows
        )
        assert len(batch) <= BATCH_IMAGES
        assert len(batch) == 1 or len(batch) * tokens <= BATCH_TOKENS
        for request in requests:
            own = [chunk for chunk in batch if chunk.job in request]
            assert len(own) * tokens <= REQUEST_TOKENS or (len(own) == 1 and shape.rows == 1)
        read.update((chunk.job, row) for chunk in batch for row in chunk.rows)
    kinds = {True: (False, True), False: (False,)}
    expected = {
        (job, Row(number, looks, length))
        for request, jobs in zip(given, requests, strict=True)
        for (lengths, image), job in zip(request, jobs, strict=True)
        for number, length in enumerate(lengths)
        for looks in kinds[image]
    }
    assert read == Counter(expected)
    assert all(job.is_done and not job.tokens_left for request in requests for job in request)


@pytest.mark.parametrize(
    "large", [[[10] * 1000] * 20, [[10] * 1000], [[300] * 50] * 30], ids=["twenty", "one", "long texts"]
)
@pytest.mark.parametrize("images", [1, 16])
def test_a_small_request_waits_for_two_batches(large: list[list[int]], images: int) -> None:
    """However many large ones wait, and however many images they have."""
    for before in range(4):
        turns, small = Turns(), text_job(10)
        for lengths in large:
            turns.add([text_job(*lengths[image::images]) for image in range(images)])
        for _ in range(before):
            turns.take_batch()
        turns.add([small])
        assert take_until(turns, small) <= 2


def test_a_large_request_is_not_starved() -> None:
    """A new small request comes with each batch, so there always is one with less left."""
    turns, large = Turns(), text_job(*[10] * 1000)
    turns.add([large])
    batches = 0
    while not large.is_done:
        turns.add([text_job(5)])
        turns.take_batch()
        batches += 1
    assert batches <= 2 * 2000 * 16 / REQUEST_TOKENS + 2  # 2,000 readings of 16 tokens, in every other batch


def test_jobs_of_one_shape_are_read_together() -> None:
    turns, jobs = Turns(), [text_job(10, 4), text_job(300), text_job(3, 12), text_job(10, image=False)]
    for job in jobs:
        turns.add([job])
    assert [chunk.job for chunk in turns.take_batch()] == [jobs[0], jobs[2]]


@pytest.mark.parametrize("number", [0, 1])
def test_a_removed_job_is_not_read(number: int) -> None:
    turns, jobs = Turns(), [text_job(4), text_job(4)]
    for job in jobs:
        turns.add([job])
    turns.remove([jobs[number]])
    turns.remove([jobs[number]])
    assert [chunk.job for chunk in turns.take_batch()] == [jobs[1 - number]]
