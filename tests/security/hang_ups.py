# SPDX-License-Identifier: Apache-2.0
"""Clients that ask over gRPC and hang up at once, with answers on their way."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

CLIENTS = 4  # at a time
REQUESTS = 4  # of each connection
LONGEST_SECONDS = 0.01  # from the requests to the hang-up
CONNECT_SECONDS = 10.0


def hang_up(grpc_url: str, image: bytes, times: int) -> int:
    """Connect so often, ask for an image's caption, alone and in a stream, and hang up; how often that came about."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(lambda seed: _hang_up(grpc_url, image, random.Random(seed)), range(times)))


def _hang_up(grpc_url: str, image: bytes, rng: random.Random) -> bool:
    address = grpc_url.removeprefix("grpc://")
    own = [("grpc.use_local_subchannel_pool", 1)]  # else a process has one connection for all of its channels
    with grpc.insecure_channel(address, options=own) as channel:
        try:
            grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            return False
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="caption")
        request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(len(image).to_bytes(4, "little") + image)
        for _ in range(REQUESTS):
            if rng.random() < 0.5:
                stub.ModelInfer.future(request)
            else:
                stub.ModelStreamInfer(iter([request]))
        time.sleep(rng.uniform(0, LONGEST_SECONDS))
    return True
