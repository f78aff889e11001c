# SPDX-License-Identifier: Apache-2.0
"""The generated config is config.pbtxt with the batches, graphs and warm-up of the plan."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from blipstream.files import MODEL_REPOSITORY
from blipstream.server.command import config_name
from blipstream_build.configs import PlanOptions
from blipstream_build.encoder_config import graph_batches, write_encoder_config
from blipstream_build.repository import PLAN_CONFIG, materialise


def parse(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def test_what_the_plan_says(tmp_path: Path) -> None:
    materialise(tmp_path)
    write_encoder_config(tmp_path, PlanOptions(opt_batch=24), 384)
    generated = parse(tmp_path / "encoder" / PLAN_CONFIG)
    assert list(generated.dynamic_batching.preferred_batch_size) == [24]
    specs = {spec.batch_size: list(spec.input["pixels"].dim) for spec in generated.optimization.cuda.graph_spec}
    assert specs == {batch: [384, 384, 3] for batch in (1, 2, 4, 8, 16, 24, 32, 64)}
    assert generated.optimization.cuda.graphs
    assert [(request.batch_size, list(request.inputs["pixels"].dims)) for request in generated.model_warmup] == [
        (batch, [384, 384, 3]) for batch in (1, 24, 64)
    ]
    # all else is as in config.pbtxt
    for name in ("optimization", "model_warmup"):
        generated.ClearField(name)
    del generated.dynamic_batching.preferred_batch_size[:]
    assert generated == parse(MODEL_REPOSITORY / "encoder/config.pbtxt")


def test_graphs_lie_within_the_profile() -> None:
    assert graph_batches(PlanOptions(min_batch=4, opt_batch=6, max_batch=20)) == [4, 6, 8, 16, 20]


def test_it_is_what_tensorrt_serves_with(tmp_path: Path) -> None:
    materialise(tmp_path)
    assert config_name(tmp_path, "tensorrt") is None  # config.pbtxt itself
    write_encoder_config(tmp_path, PlanOptions(), 384)
    assert config_name(tmp_path, "tensorrt") == "tensorrt"
