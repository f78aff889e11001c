# SPDX-License-Identifier: Apache-2.0
"""A flood of requests to a real Triton: what is refused is refused first of all, before any model works for it."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from blipstream.server.canary import random_image
from blipstream.server.triton import TritonServer
from blipstream.serving.backpressure import Counts
from blipstream_client import AsyncClient, Caption, Client, InvalidRequest, ServerOverloaded
from tests.support.backpressure_file import backpressure_file, read_counts, write_counts
from tests.support.waiting import wait_until

DECODER_QUEUE = 48
BATCH, ROOM = 4, 16  # both are less than a queue holds
USERS, TIMES = 200, 5  # each user sends the next request at once
# appended to the adapter of preprocess
SMALL_QUEUE = """
from blipstream.serving import loading_service
loading_service.MAX_WAITING = 16
"""


@pytest.fixture(scope="module")
def server(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("small_queue") / "models"
    shutil.copytree(artifacts, repository, symlinks=True)
    file = repository / "decoder/configs/cpu.pbtxt"
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    config.dynamic_batching.preferred_batch_size[:] = [BATCH]
    config.dynamic_batching.default_queue_policy.max_queue_size = DECODER_QUEUE
    file.write_text(text_format.MessageToString(config))
    with (repository / "preprocess/1/model.py").open("a") as adapter:
        adapter.write(SMALL_QUEUE)
    with TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server:
        write_counts(backpressure_file(server), Counts(room=ROOM, encoders=1))
        yield server


def test_no_stage_works_for_what_is_refused(server: TritonServer) -> None:
    before = server.metrics().inferences

    async def ask(client: AsyncClient) -> list[Caption | BaseException]:
        answers: list[Caption | BaseException] = []
        for _ in range(TIMES):
            caption = client.caption(random_image(), min_tokens=60, max_tokens=60)  # makes the last stage the slowest
            answers += await asyncio.gather(caption, return_exceptions=True)
        return answers

    async def watch(peaks: list[int]) -> None:
        while True:
            peaks.append(read_counts(backpressure_file(server)).under_way)
            await asyncio.sleep(0.01)

    async def flood(peaks: list[int]) -> list[list[Caption | BaseException]]:
        async with AsyncClient(server.grpc_url, retries=0) as client:
            watcher = asyncio.create_task(watch(peaks))
            answers = await asyncio.gather(*(ask(client) for _ in range(USERS)))
            watcher.cancel()
            return answers

    peaks: list[int] = []
    kinds = Counter(type(answer) for answers in asyncio.run(flood(peaks)) for answer in answers)
    assert kinds.keys() == {Caption, ServerOverloaded}
    captions = kinds[Caption]
    assert BATCH < max(peaks) <= 2 * ROOM  # images that were counted as lost may still arrive

    def worked() -> list[int]:
        return [server.metrics().inferences[stage] - before[stage] for stage in ("preprocess", "encoder", "decoder")]

    wait_until(lambda: worked()[-1] >= captions, otherwise=worked)  # a scheduler updates its counts now and then
    assert worked() == [captions] * 3


def test_nothing_stays_under_way_once_requests_have_ended(server: TritonServer) -> None:
    file = backpressure_file(server)
    before = read_counts(file).taken
    with Client(server.grpc_url) as client:
        client.caption(random_image())
        list(client.stream(random_image()))
        for image, options in (
            (b"no image", {}),
            (random_image(), {"num_beams": 99}),
            (random_image(), {"prompt": "a " * 500}),
        ):
            with pytest.raises(InvalidRequest):
                client.caption(image, **options)
    assert read_counts(file).under_way == 0
    assert read_counts(file).taken == before + 3
