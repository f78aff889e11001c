# SPDX-License-Identifier: Apache-2.0
"""The vision encoder as a TensorRT plan. Triton serves plans itself; this runs one without Triton."""

import importlib
import logging
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from blipstream.config import BUILD_HINT, CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.images.shapes import Pixels
from blipstream.vision.encoder import Encoder

PLAN_NAME = "model.plan"
ONNX_NAME = "encoder.onnx"  # the plan is compiled from it
INPUT, OUTPUT = "pixels", "image_embeds"

Flavour = Literal["tensorrt", "tensorrt_rtx"]
MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}

LEVELS = {"VERBOSE": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # exceptions hold what matters of it


def load_tensorrt(flavour: Flavour) -> Any:  # noqa: ANN401
    """TensorRT's module. Raises ArtifactError if it is not installed."""
    try:
        return importlib.import_module(MODULES[flavour])
    except ImportError as exc:
        raise ArtifactError(f"{flavour} is not installed here: run this in Triton's container, or install it") from exc


@cache  # TensorRT keeps the first logger of a process
def tensorrt_logger(flavour: Flavour) -> Any:  # noqa: ANN401
    """A logger that passes TensorRT's messages on to Python's logging and keeps the errors in its list `errors`."""
    trt = load_tensorrt(flavour)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            level = LEVELS.get(severity.name, logging.ERROR)
            _log.log(level, "%s", message)
            if level == logging.ERROR:
                self.errors.append(" ".join(message.split()))

    return Logger()


class TensorRTEncoder(Encoder):
    """The encoder as a plan. It needs the kind of GPU and the version of TensorRT that the plan was compiled for."""

    def __init__(self, folder: Path, flavour: Flavour = "tensorrt") -> None:
        """Load an artifact. Raises ArtifactError if its plan is broken or does not run here."""
        self.config = CheckpointConfig.load(folder)
        self.dtype = self.config.vision.quantised or "f16"
        path = folder / PLAN_NAME
        try:
            plan = path.read_bytes()
        except OSError as exc:
            raise ArtifactError(f"{path} cannot be loaded: {BUILD_HINT}") from exc
        trt, self._logger = load_tensorrt(flavour), tensorrt_logger(flavour)
        self._logger.errors.clear()
        self._runtime = trt.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = True  # version-compatible plans hold such code; we built this one
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ArtifactError(
                f"{path} does not run on this GPU with {flavour} {trt.__version__} ({self._reason()}): {BUILD_HINT}"
            )
        self._context = engine.create_execution_context()
        self._max_batch: int = engine.get_tensor_profile_shape(INPUT, 0)[2][0]
        # on the default stream TensorRT synchronizes more often
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def encode(self, pixels: Pixels) -> Tensor:
        """uint8 pixels [B, H, W, 3] -> image_embeds, f16 [B, N, E] on the GPU."""
        parts = range(0, len(pixels), self._max_batch)
        return torch.cat([self._run(torch.from_numpy(pixels[start : start + self._max_batch])) for start in parts])

    def _run(self, pixels: Tensor) -> Tensor:
        pixels = pixels.cuda()
        ready = self._context.set_input_shape(INPUT, tuple(pixels.shape))
        image_embeds = torch.empty(
            tuple(self._context.get_tensor_shape(OUTPUT)), dtype=torch.float16, device=pixels.device
        )
        for name, tensor in ((INPUT, pixels), (OUTPUT, image_embeds)):
            ready = ready and self._context.set_tensor_address(name, tensor.data_ptr())
        self._stream.wait_stream(torch.cuda.current_stream())
        if not (ready and self._context.execute_async_v3(self._stream.cuda_stream)):
            raise ArtifactError(f"the plan does not run on {list(pixels.shape)} ({self._reason()}): {BUILD_HINT}")
        self._stream.synchronize()
        return image_embeds

    def _reason(self) -> str:
        return self._logger.errors[0] if self._logger.errors else "no reason given"
