# SPDX-License-Identifier: Apache-2.0
"""A TensorRT encoder's config for Triton: config.pbtxt, with the batch sizes and the image size of the plan."""

from pathlib import Path

from tritonclient.grpc import model_config_pb2

from blipstream.vision.tensorrt import INPUT
from blipstream_build.configs import PlanOptions
from blipstream_build.generated_config import generated_config
from blipstream_build.repository import PLAN_CONFIG


def write_encoder_config(repository: Path, options: PlanOptions, image_size: int, model: str = "encoder") -> None:
    """Write configs/tensorrt.pbtxt: config.pbtxt with preferred batches, and CUDA graphs and warm-up for them."""
    with generated_config(repository / model / PLAN_CONFIG) as config:
        config.dynamic_batching.preferred_batch_size.append(options.opt_batch)
        cuda = config.optimization.cuda
        cuda.graphs = True
        shape = [image_size, image_size, 3]
        for batch in graph_batches(options):
            spec = cuda.graph_spec.add(batch_size=batch)
            spec.input[INPUT].dim.extend(shape)
        for batch in sorted({options.min_batch, options.opt_batch, options.max_batch}):
            request = config.model_warmup.add(name=f"batch of {batch}", batch_size=batch)
            pixels = request.inputs[INPUT]
            pixels.data_type = model_config_pb2.TYPE_UINT8
            pixels.dims.extend(shape)
            pixels.zero_data = True


def graph_batches(options: PlanOptions) -> list[int]:
    """The batch sizes that get a CUDA graph: powers of two, and the plan's three. Other sizes run without one."""
    powers = {1 << power for power in range(options.max_batch.bit_length())}
    wanted = powers | {options.min_batch, options.opt_batch, options.max_batch}
    return sorted(batch for batch in wanted if options.min_batch <= batch <= options.max_batch)
