# SPDX-License-Identifier: Apache-2.0
"""A model's config for Triton with more in it than its config.pbtxt, which git tracks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


@contextmanager
def generated_config(target: Path) -> Iterator[model_config_pb2.ModelConfig]:
    """Give the model's config.pbtxt to be changed, and write it to `target`, a file of its configs/, at the end."""
    source = target.parent.with_name("config.pbtxt")
    config = text_format.Parse(source.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    yield config
    target.parent.mkdir(exist_ok=True)
    target.write_text(text_format.MessageToString(config), encoding="utf-8")
