# SPDX-License-Identifier: Apache-2.0
"""What every model.py does with Triton: read its settings, read requests, send responses and errors."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from blipstream.deadline import Deadline
from blipstream.defaults import FIXED, VALUES, from_parameters
from blipstream.errors import BlipstreamError, apart, parse_error, report, triton_error
from blipstream.options import INPUT_NAMES
from blipstream.serving.metrics import RequestCounter
from blipstream.serving.parameters import refuse_parameters
from blipstream.serving.refusals import DelayedRefusals
from blipstream.serving.telemetry import Telemetry

ID_LENGTH = 64  # characters that are kept of a request's id

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Outputs = Mapping[str, Any]  # numpy arrays or torch tensors, by their names


class ModelInstance:
    """One instance of a model, with its settings and its telemetry."""

    def __init__(self, pb_utils: Any, args: Mapping[str, str]) -> None:  # noqa: ANN401
        """`args` is what Triton hands `initialize`. Raises ServerError where Telemetry or `from_parameters` does."""
        self.pb_utils = pb_utils
        self.name = args["model_name"]
        self.device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.folder = Path(args["model_repository"], args["model_version"])
        config = json.loads(args["model_config"])
        self.max_batch: int = config["max_batch_size"]
        self.count: int = sum(group["count"] for group in config["instance_group"])  # of instances of this model
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.defaults = from_parameters(parameters)  # of options
        self.parameters = {name: value for name, value in parameters.items() if name not in (VALUES, FIXED)}
        self.telemetry = Telemetry(self.name)
        self.refusals = DelayedRefusals()
        self._counter = RequestCounter(pb_utils.MetricFamily, self.name)

    def folder_of(self, model: str) -> Path:
        """The folder of another model in the same repository, in the same version."""
        return self.folder.parent.with_name(model) / self.folder.name

    def request(self, request: Any) -> "TritonRequest":  # noqa: ANN401
        """A request that Triton hands `execute`."""
        return TritonRequest(self, request)

    def export_counts(self) -> None:
        """Update the Prometheus counter of requests."""
        self._counter.update(self.telemetry.results)

    def close(self) -> None:
        """Send the last refusals and the last spans."""
        self.refusals.close()
        self.telemetry.close()


class TritonRequest:
    """A request that Triton handed to a model, and the way back to its sender."""

    def __init__(self, instance: ModelInstance, request: Any) -> None:  # noqa: ANN401
        self._instance = instance
        self._pb_utils = instance.pb_utils
        self._request = request

    @cached_property
    def _sender(self) -> Any:  # noqa: ANN401
        """Made when it is first needed: a model that returns its responses must not have one."""
        return self._request.get_response_sender()

    @cached_property
    def id(self) -> str:
        """The sender's name for the request, cut short; empty if it is not text, which HTTP lets through."""
        try:
            return str(self._request.request_id())[:ID_LENGTH]
        except UnicodeDecodeError:
            return ""

    @property
    def trace_context(self) -> str:
        """The W3C trace headers as JSON; empty if Triton does not trace the request."""
        return self._request.trace().get_context() or ""

    @cached_property
    def deadline(self) -> Deadline:
        """When the request's time is up, counted from the first use of this property."""
        return Deadline(self._request.timeout(), self.is_cancelled)

    @property
    def is_cancelled(self) -> Callable[[], bool]:
        """Tells whether the sender has cancelled the request. It holds no reference to this object."""
        is_cancelled: Callable[[], bool] = self._sender.is_cancelled
        return is_cancelled

    def refuse_parameters(self, names: tuple[str, ...] = INPUT_NAMES) -> None:
        """Raise InvalidInput if the request has parameters; `names` are the model's inputs."""
        refuse_parameters(self._request, names)

    def wants(self, *names: str) -> bool:
        """Whether the sender asked for any of these outputs. Who names none gets all."""
        return not set(names).isdisjoint(self._request.requested_output_names())

    def tensors(self, *names: str) -> dict[str, Any]:
        """The Triton tensors of those inputs that the request has."""
        inputs = {tensor.name(): tensor for tensor in self._request.inputs()}
        return {name: inputs[name] for name in names if name in inputs}

    def arrays(self, *names: str) -> dict[str, Any]:
        """The same as numpy arrays. Their first axis is the batch."""
        return {name: tensor.as_numpy() for name, tensor in self.tensors(*names).items()}

    def release_inputs(self) -> None:
        """Give the shared memory of the inputs back, for a request that is answered later.

        Whatever is read of the request, but for its id and its deadline, is read before. Arrays of BYTES are copies;
        others lie in that memory, and keep it.
        """
        _ = self.id, self.deadline, self._sender
        self._request = None

    async def call(self, model: str, inputs: Iterable[Any], output: str) -> Any:  # noqa: ANN401
        """Another model's output for this request, as a Triton tensor.

        Raises Gone if the sender has cancelled the request, TimedOut if its time is up, and the model's own error.
        """
        inner = self._pb_utils.InferenceRequest(
            self.id,
            model_name=model,
            inputs=list(inputs),
            requested_output_names=[output],
            timeout=self.deadline.left(),
        )
        # Triton 2.51 crashes if its own trace is handed on, so the span is ours
        with self._instance.telemetry.span(model, self.id, self.trace_context):
            response = await inner.async_exec()
        if error := response.error():
            raise parse_error(error.message())
        return self._pb_utils.get_output_tensor_by_name(response, output)

    @contextmanager
    def refused_on_error(self) -> Iterator[None]:
        """Refuse the request with any error that is raised inside the block, which ends there."""
        try:
            yield
        except Exception as exc:
            self.refuse(report(exc))

    def refuse(self, error: BlipstreamError) -> None:
        """Record that the request was refused, and send the error a moment later."""
        self.release_inputs()
        self._instance.telemetry.record_refusal(self.id, error)
        self._instance.refusals.put(partial(self.send_error, error))

    def response(self, result: Outputs | BlipstreamError, seconds: float) -> Any:  # noqa: ANN401
        """A Triton response with outputs or an error. What became of the request is recorded.

        `seconds` is how long its batch took. The number of images is the length of the first output.
        """
        telemetry = self._instance.telemetry
        if not isinstance(result, BlipstreamError):
            try:
                response = self._response(result)
            except Exception as exc:  # shared memory may be full
                result = report(exc)
            else:
                telemetry.record_response(self.id, len(next(iter(result.values()))), seconds)
                return response
        telemetry.record_refusal(self.id, result)
        return self._error_response(result)

    def send(self, response: Any) -> None:  # noqa: ANN401
        """Send the one response of a request."""
        self._sender.send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def send_outputs(self, outputs: Outputs) -> None:
        """Send outputs as the one response of a request."""
        self.send(self._response(outputs))

    def send_outputs_soon(self, outputs: Outputs) -> None:
        """The same a moment later, as a refusal: for outputs that are there before Triton has handed the request over.

        Nothing happens where the sender has gone.
        """

        def send() -> None:
            with suppress(Exception):
                self.send_outputs(outputs)

        self._instance.refusals.put(send)

    def stream_outputs(self, outputs: Outputs) -> None:
        """Send outputs as one response of several; `end_stream` follows the last one."""
        self._sender.send(self._response(outputs))

    def end_stream(self) -> None:
        """Say that no more responses come."""
        self._sender.send(flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def send_error(self, error: BlipstreamError) -> None:
        """Send an error as the last response. Nothing happens where the sender has gone."""
        with suppress(Exception):
            self.send(self._error_response(error))

    def _response(self, outputs: Outputs) -> Any:  # noqa: ANN401
        return self._pb_utils.InferenceResponse([self._tensor(*output) for output in outputs.items()])

    def _error_response(self, error: BlipstreamError) -> Any:  # noqa: ANN401
        return self._pb_utils.InferenceResponse(error=triton_error(self._pb_utils.TritonError, error))

    def _tensor(self, name: str, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, np.ndarray):
            return self._pb_utils.Tensor(name, value)
        return self._pb_utils.Tensor.from_dlpack(name, value)  # on a GPU it stays there


def attempt(function: Callable[[ItemT], ResultT], item: ItemT) -> ResultT | BlipstreamError:
    """What the function returns, or the error to tell the sender."""
    try:
        return function(item)
    except Exception as exc:
        return report(exc)


def attempt_together(
    function: Callable[[Sequence[ItemT]], Sequence[ResultT]], items: Sequence[ItemT | BlipstreamError]
) -> list[ResultT | BlipstreamError]:
    """What the function makes of all items together. Errors among the items stay errors.

    An item at which the function fails gets its own error, and spoils no other.
    """
    results = iter(apart(function, [item for item in items if not isinstance(item, BlipstreamError)]))
    return [item if isinstance(item, BlipstreamError) else next(results) for item in items]
