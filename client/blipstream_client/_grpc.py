# SPDX-License-Identifier: Apache-2.0
"""Tensors over gRPC. tritonclient's gRPC client may be shared between threads."""

from functools import partial
from threading import Event

from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import np_to_triton_dtype

from blipstream_client._contract import Tensors
from blipstream_client._exceptions import translated_errors
from blipstream_client._transport import Address

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Else a client that came before its server is refused for up to two minutes after it starts.
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


class GrpcTransport:
    """One channel, which is one connection for all requests."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._timeout = timeout
        self._closed = Event()
        self._errors = partial(translated_errors, url=address.url, timeout=timeout, closed=self._closed)
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._client = InferenceServerClient(
            f"{host}:{address.port}", ssl=address.scheme == "grpcs", channel_args=CHANNEL_OPTIONS
        )

    def infer(self, model: str, inputs: Tensors) -> Tensors:
        """The model's outputs for one request. Raises BlipstreamError."""
        request = [
            InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype)).set_data_from_numpy(tensor)
            for name, tensor in inputs.items()
        ]
        with self._errors():
            result = self._client.infer(model, request, client_timeout=self._timeout)
            return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def is_model_ready(self, model: str) -> bool:
        """Whether the server says that the model can serve. Raises BlipstreamError."""
        with self._errors():
            return bool(self._client.is_model_ready(model, client_timeout=self._timeout))

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._closed.set()
        self._client.close()
