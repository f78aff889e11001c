# SPDX-License-Identifier: Apache-2.0
"""The requests that wait, each with its jobs, and whose turn it is."""

from collections.abc import Sequence
from itertools import islice

from blipstream.matching.job import Chunk, Job

REQUEST_TOKENS = 1024  # of one request in a batch, padding included: 64 short texts
BATCH_TOKENS = 2048  # of all requests in a batch; beyond, a CPU gains nothing, and others wait longer
BATCH_IMAGES = 16  # in a batch: the keys and values of an image take as long as 70 tokens


class Turns:
    """Every other batch begins with the request that has the least left; the rest, with the one served longest ago.

    So a small request waits for two batches before its own, however many large ones there are, and a large one is not
    starved by small ones. That also bounds what clients cost that have gone: Triton tells an ensemble's steps only as
    they begin.

    A batch has chunks of one shape, that of the first, so that there is little padding.
    """

    def __init__(self) -> None:
        self._requests: list[list[Job]] = []  # the one served longest ago first
        self._least_first = False

    def add(self, jobs: Sequence[Job]) -> None:
        """Let the jobs of a request wait for their turn."""
        if waiting := [job for job in jobs if not job.is_done]:
            self._requests.append(waiting)

    def remove(self, jobs: Sequence[Job]) -> None:
        """Forget the jobs of a request, if they wait."""
        self._requests = [request for request in self._requests if request[0] not in jobs]

    def take_batch(self) -> list[Chunk]:
        """The chunks that are to be read now; none if nothing waits. Their requests wait on if they have more."""
        if not self._requests:
            return []
        requests = list(self._requests)
        if self._least_first:
            requests.sort(key=lambda request: sum(job.tokens_left for job in request))
        self._least_first = not self._least_first
        shape = requests[0][0].first_chunk(REQUEST_TOKENS).shape
        tokens = shape.rows * shape.tokens
        per_request, per_batch = REQUEST_TOKENS // tokens or 1, min(BATCH_TOKENS // tokens, BATCH_IMAGES) or 1
        if shape.explains:  # which takes three times as long
            per_batch = 1
        batch: list[Chunk] = []
        for request in requests:
            fitting = (chunk for job in request if (chunk := job.first_chunk(REQUEST_TOKENS)).shape == shape)
            chunks = list(islice(fitting, min(per_request, per_batch - len(batch))))
            if chunks:
                for chunk in chunks:
                    chunk.job.take(chunk)
                batch += chunks
                self._requests.remove(request)
                self.add(request)
        return batch
