# SPDX-License-Identifier: Apache-2.0
"""Images that take long to decode, sent to a running Triton, do not hold up other images."""

from concurrent.futures import ThreadPoolExecutor

import psutil
from PIL import Image

from blipstream.images.limits import TOO_SLOW
from blipstream.server.triton import TritonServer
from blipstream_client import Client, InvalidRequest
from slow_images import run_length_encoded_bmp
from tests.conftest import SAMPLES
from tests.support.image_files import encode
from tests.support.waiting import wait_until


def decoders(server: TritonServer) -> list[psutil.Process]:
    """The processes that preprocess has started for slow images."""
    children = psutil.Process(server.pid).children(recursive=True)
    return [each for each in children if "blipstream.images.worker" in each.cmdline()]


def test_slow_images_hold_nobody_up(server: TritonServer, samples: dict[str, str]) -> None:
    """Not even if there are more of them than processes that decode: others are captioned before they end."""
    slow = run_length_encoded_bmp(65_535, 300)  # more than a second of work in 2.3 KB
    with Client(server.grpc_url, timeout=300) as client, ThreadPoolExecutor() as pool:

        def send() -> None:
            try:
                client.caption(slow)
            except InvalidRequest as error:
                assert str(error).startswith(TOO_SLOW)  # noqa: PT017 - a fast processor captions it

        sent = [pool.submit(send) for _ in range(2 + (psutil.cpu_count() or 1))]
        wait_until(lambda: bool(decoders(server)), seconds=60)
        name, text = next(iter(samples.items()))
        assert client.caption(SAMPLES / name).text == text
        assert not all(each.done() for each in sent)
        for each in sent:
            each.result()
        # slow images come out right
        large, small = (encode(Image.new("L", size, 77), "PNG") for size in [(4000, 3000), (4, 3)])
        assert client.caption(large) == client.caption(small)
    server.check()
