# SPDX-License-Identifier: Apache-2.0
"""A flood through the real Triton: what is refused is refused at the door, and nobody worked for it."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from blipstream.server import TritonServer
from blipstream.supervisor import picture
from blipstream_client import AsyncClient, Caption, ServerOverloaded

QUEUES = {"preprocess/config.pbtxt": 16, "encoder/configs/cpu.pbtxt": 48, "decoder/configs/cpu.pbtxt": 48}
BATCH = 4  # so that what is admitted together, and what may be under way, is less than a queue holds
USERS, TIMES = 200, 5  # each asks again at once


@pytest.fixture(scope="module")
def server(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("small_queue") / "models"
    shutil.copytree(artifacts, repository, symlinks=True)
    for file, size in QUEUES.items():
        config = text_format.Parse((repository / file).read_text(), model_config_pb2.ModelConfig())
        config.dynamic_batching.preferred_batch_size[:] = [BATCH]
        config.dynamic_batching.default_queue_policy.max_queue_size = size
        (repository / file).write_text(text_format.MessageToString(config))
    with TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


def test_no_stage_works_for_what_is_refused(server: TritonServer) -> None:
    before = server.counts()

    async def ask(client: AsyncClient) -> list[Caption | BaseException]:
        answers: list[Caption | BaseException] = []
        for _ in range(TIMES):
            caption = client.caption(picture(), min_tokens=60, max_tokens=60)  # the last stage is the slowest
            answers += await asyncio.gather(caption, return_exceptions=True)
        return answers

    async def flood() -> list[list[Caption | BaseException]]:
        async with AsyncClient(server.grpc_url, retries=0) as client:
            return await asyncio.gather(*(ask(client) for _ in range(USERS)))

    kinds = Counter(type(answer) for answers in asyncio.run(flood()) for answer in answers)
    assert kinds.keys() == {Caption, ServerOverloaded}
    captions = kinds[Caption]
    after = server.counts()
    assert [after[stage] - before[stage] for stage in ("preprocess", "encoder", "decoder")] == [captions] * 3
