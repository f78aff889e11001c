# SPDX-License-Identifier: Apache-2.0
"""The jobs that wait, and whose turn it is."""

from collections.abc import Iterator

from blipstream.matching.job import Chunk, Job

CHUNK_TOKENS = 1024  # of one job in a batch, padding included: 64 short texts. Large jobs take turns
BATCH_TOKENS = 2048  # of all jobs in a batch; beyond, a CPU gains nothing, and others wait longer
BATCH_IMAGES = 16  # in a batch: the keys and values of an image take as long as 70 tokens


class Turns:
    """First come, first served, a chunk at a time: a job that has more waits behind the others.

    A batch has chunks of one shape, so that there is little padding. The first job's shape counts, so none waits for
    ever.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs))

    def add(self, job: Job) -> None:
        """Let a job wait for its turn."""
        self._jobs.append(job)

    def remove(self, job: Job) -> None:
        """Forget a job, if it waits."""
        if job in self._jobs:
            self._jobs.remove(job)

    def take_batch(self) -> list[Chunk]:
        """The chunks that are to be read now; none if nothing waits. Their jobs wait on if they have more."""
        batch: list[Chunk] = []
        for job in self._jobs:
            chunk = job.first_chunk(CHUNK_TOKENS)
            shape = batch[0].shape if batch else chunk.shape
            if chunk.shape == shape:
                batch.append(chunk)
                if len(batch) == BATCH_IMAGES or (len(batch) + 1) * shape.rows * shape.tokens > BATCH_TOKENS:
                    break
        for chunk in batch:
            chunk.job.take(chunk)
            self._jobs.remove(chunk.job)
            if not chunk.job.is_done:
                self._jobs.append(chunk.job)
        return batch
