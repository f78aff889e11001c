# SPDX-License-Identifier: Apache-2.0

import pytest

from blipstream.vision.tensorrt import ONNX_NAME
from blipstream_bench.random_checkpoint import save_random_checkpoint
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.onnx_export import export_onnx
from tests.conftest import CHECKPOINT
from tests.support.exported import Exported

SHALLOW = 2  # layers


@pytest.fixture(scope="session", params=["demo", "base", pytest.param("large", marks=pytest.mark.full)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The demo, and the real architectures with two layers."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = CHECKPOINT
    if request.param != "demo":
        checkpoint = save_random_checkpoint(folder / "checkpoint", request.param, SHALLOW)
    found = Checkpoint.find(str(checkpoint))
    model = found.load_model()
    config = found.config(model, "auto")
    export_onnx(model, config, folder)
    return Exported(checkpoint, folder / ONNX_NAME, config)
