# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from blipstream.adapters import FOLDER_NAME, AdapterConfig
from blipstream.config import CheckpointConfig
from blipstream.decoding import Engine
from blipstream.server.network import bypass_proxies
from blipstream.server.triton import TritonServer
from blipstream_build.build import build
from scenes import Scene, examination
from tests.reference import Reference
from tests.support.adapters import AdaptedReference
from tests.support.recorded_graphs import recorded_graphs
from tests.support.retrieval import RetrievalReference, save_retrieval_checkpoint

__all__ = ["recorded_graphs"]

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "build" / "demo" / "checkpoint"
DEMO_RETRIEVAL_CHECKPOINT = ROOT / "build" / "demo" / "retrieval-checkpoint"
SAMPLES = ROOT / "build" / "demo" / "samples"

# a slow or busy machine fails no test
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("requires_cuda"):
                item.add_marker(pytest.mark.skip(reason="there is no NVIDIA GPU here"))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let Ctrl-C reach the programs that tests start, even if the shell put the tests in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """Keep tests from hubs and proxies: a test that would ask one fails at once, and does not wait for a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setenv("no_proxy", "")
        bypass_proxies()
        yield


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The demo checkpoint in transformers."""
    return Reference(CHECKPOINT)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the demo checkpoint's artifacts, in the dtype that suits the processor."""
    repository = tmp_path_factory.mktemp("repository")
    build(str(CHECKPOINT), "auto", repository)
    return repository


@pytest.fixture(scope="session")
def f32_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in f32, where everything must be exact."""
    repository = tmp_path_factory.mktemp("f32_repository")
    build(str(CHECKPOINT), "f32", repository)
    return repository


@pytest.fixture(scope="session")
def retrieval_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retrieval checkpoint with random weights, and a vision encoder of its own."""
    return save_retrieval_checkpoint(tmp_path_factory.mktemp("retrieval"))


@pytest.fixture(scope="session")
def retrieval_reference(retrieval_checkpoint: Path) -> RetrievalReference:
    """The same in transformers."""
    return RetrievalReference(retrieval_checkpoint)


@pytest.fixture(scope="session")
def matching_artifacts(
    f32_artifacts: Path, retrieval_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model repository with the demo's captioner and matching beside it, in f32."""
    repository = shutil.copytree(f32_artifacts, tmp_path_factory.mktemp("matching") / "repository")
    build(str(retrieval_checkpoint), "f32", repository)
    return repository


@pytest.fixture(scope="session")
def matching_server(matching_artifacts: Path) -> Iterator[TritonServer]:
    """A real Triton that serves `matching_artifacts`."""
    server = TritonServer(repository=matching_artifacts, config="cpu", http_port=0, grpc_port=0, metrics_port=0)
    with server as running:
        yield running


@pytest.fixture(scope="session")
def demo_artifacts(f32_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with both of the demo's checkpoints, in f32."""
    repository = shutil.copytree(f32_artifacts, tmp_path_factory.mktemp("demo") / "repository")
    build(str(DEMO_RETRIEVAL_CHECKPOINT), "f32", repository)
    return repository


@pytest.fixture(scope="session")
def demo_server(demo_artifacts: Path) -> Iterator[TritonServer]:
    """A real Triton that serves `demo_artifacts`."""
    with TritonServer(repository=demo_artifacts, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="session")
def adapters(demo_artifacts: Path, demo_server: TritonServer) -> dict[str, AdaptedReference]:  # noqa: ARG001
    """Adapters that `demo_server` has once it runs: with words, without, and one of another base."""
    folder = demo_artifacts / "decoder/1" / FOLDER_NAME
    base = CheckpointConfig.load(demo_artifacts / "decoder/1/artifact")
    references = {"fr": AdaptedReference(CHECKPOINT, 1, words=3), "ja": AdaptedReference(CHECKPOINT, 2)}
    for name, reference in references.items():
        reference.save_adapter(folder / name, base)
        config = AdapterConfig.load(folder / name)
        replace(config, language=name, revision="1", metrics={"exact": 0.97}).save(folder / name)
    references["ja"].save_adapter(folder / "old", replace(base, revision="another"))
    return references


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.requires_cuda)]
LoadEngine = Callable[..., Engine]
ENGINES = [
    pytest.param(partial(Engine.load, device="cpu"), id="cpu"),
    pytest.param(partial(Engine.load, device="cpu", fixed_shapes=True), id="cpu-with-fixed-shapes"),
    pytest.param(partial(Engine.load, device="cuda"), id="cuda", marks=pytest.mark.requires_cuda),
]


# with scope session, pytest would run each module's tests in parts, and set the module up for each
@pytest.fixture(scope="module", params=ENGINES)
def load(request: pytest.FixtureRequest) -> LoadEngine:
    """Engine.load on each device, and on the CPU by the GPU's way, too."""
    load: LoadEngine = request.param
    return load


@pytest.fixture(scope="module")
def engine(f32_artifacts: Path, load: LoadEngine) -> Engine:
    """The decoder in f32, in each way."""
    return load(f32_artifacts / "decoder/1/artifact")


@pytest.fixture(scope="session")
def server(artifacts: Path) -> Iterator[TritonServer]:
    """A real Triton that serves `artifacts`."""
    with TritonServer(repository=artifacts, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    """200 scenes of held-out pairs."""
    return list(examination(200))


@pytest.fixture(scope="session")
def scene_images(scenes: list[Scene]) -> list[Image.Image]:
    return [scene.draw(384) for scene in scenes]


@pytest.fixture(scope="session")
def samples() -> dict[str, str]:
    """The right caption of each file in SAMPLES."""
    captions: dict[str, str] = json.loads((SAMPLES / "captions.json").read_text(encoding="utf-8"))
    return captions


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
