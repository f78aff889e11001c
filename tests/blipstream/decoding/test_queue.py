# SPDX-License-Identifier: Apache-2.0
"""The queue is fair to calls for many images and to single ones."""

from pathlib import Path

import torch
from torch import Tensor

from blipstream.decoding import Request
from blipstream.decoding.queue import RequestQueue
from blipstream.options import DecodingOptions
from tests.conftest import LoadEngine


def test_a_call_for_many_images_lets_others_pass(f32_artifacts: Path, load: LoadEngine) -> None:
    """Eight images with four beams each come first. Then two greedy requests come before each step."""
    engine = load(f32_artifacts / "decoder/1/artifact", max_rows=8)
    embeds: Tensor = torch.randn(9, *engine.image_embeds_shape, generator=torch.Generator().manual_seed(0))
    queue = RequestQueue()

    def step() -> None:
        while (first := queue.first()) and engine.can_admit(first):
            engine.admit(queue.take_first())
        engine.step()

    many = engine.requests(embeds[:8], [DecodingOptions(num_beams=4, max_tokens=2)] * 8)
    few: list[Request] = []
    for request in many:
        queue.add(request)
    step()
    while not all(request.captions for request in many):  # none of them waits for ever
        for _ in range(2):
            few.append(engine.request(embeds[8], DecodingOptions(max_tokens=2)))
            queue.add(few[-1])
        step()
    admitted = sorted(filter(lambda request: request.admitted, many + few), key=lambda request: request.admitted)
    assert [request for request in admitted if request in many] == many
    assert admitted[:4] == [*many[:2], *few[:2]]  # and the others do not wait for all of them


def test_a_request_can_leave_the_queue(f32_artifacts: Path, load: LoadEngine) -> None:
    engine = load(f32_artifacts / "decoder/1/artifact")
    first, second = engine.requests(torch.zeros(2, *engine.image_embeds_shape), [DecodingOptions()] * 2)
    queue = RequestQueue()
    queue.add(first)
    queue.add(second)
    queue.remove(first)
    assert [*queue] == [second]
    assert queue.take_first() is second
    assert queue.first() is None
    assert len(queue) == 0
