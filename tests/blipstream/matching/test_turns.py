# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: nobody waits for all of a large job, and all is read once."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blipstream.matching.job import Job, Row
from blipstream.matching.turns import BATCH_IMAGES, BATCH_TOKENS, CHUNK_TOKENS, Turns

IMAGE = np.zeros((4, 8), np.float16)


def text_job(*lengths: int, image: bool = True) -> Job:
    return Job([[1] * length for length in lengths], IMAGE if image else None)


@given(st.lists(st.tuples(st.lists(st.integers(2, 512), min_size=1, max_size=100), st.booleans()), max_size=20))
def test_all_is_read_once_within_the_bounds(given: list[tuple[list[int], bool]]) -> None:
    turns, read = Turns(), Counter[tuple[Job, Row]]()
    jobs = [text_job(*lengths, image=image) for lengths, image in given]
    for job in jobs:
        turns.add(job)
    while batch := turns.take_batch():
        assert len({chunk.shape for chunk in batch}) == 1
        shape = batch[0].shape
        assert all(
            len(chunk.rows) <= shape.rows and row.length <= shape.tokens for chunk in batch for row in chunk.rows
        )
        assert shape.rows * shape.tokens <= CHUNK_TOKENS or shape.rows == 1
        assert len(batch) <= BATCH_IMAGES
        assert len(batch) == 1 or len(batch) * shape.rows * shape.tokens <= BATCH_TOKENS
        read.update((chunk.job, row) for chunk in batch for row in chunk.rows)
    kinds = {True: (False, True), False: (False,)}
    expected = {
        (job, Row(number, looks, length))
        for job, (lengths, image) in zip(jobs, given, strict=True)
        for number, length in enumerate(lengths)
        for looks in kinds[image]
    }
    assert read == Counter(expected)
    assert all(job.is_done for job in jobs)


def test_a_small_job_waits_for_one_chunk_of_a_large_one() -> None:
    turns, large, small = Turns(), text_job(*[10] * 1000), text_job(10)
    turns.add(large)
    assert [chunk.job for chunk in turns.take_batch()] == [large]
    turns.add(small)
    assert small in [chunk.job for batch in (turns.take_batch(), turns.take_batch()) for chunk in batch]
    assert not large.is_done


def test_jobs_of_one_shape_are_read_together() -> None:
    turns, jobs = Turns(), [text_job(10, 4), text_job(300), text_job(3, 12), text_job(10, image=False)]
    for job in jobs:
        turns.add(job)
    assert [chunk.job for chunk in turns.take_batch()] == [jobs[0], jobs[2]]


@pytest.mark.parametrize("number", [0, 1])
def test_a_removed_job_is_not_read(number: int) -> None:
    turns, jobs = Turns(), [text_job(4), text_job(4)]
    for job in jobs:
        turns.add(job)
    turns.remove(jobs[number])
    turns.remove(jobs[number])
    assert [chunk.job for chunk in turns.take_batch()] == [jobs[1 - number]]
