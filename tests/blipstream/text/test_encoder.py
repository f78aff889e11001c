# SPDX-License-Identifier: Apache-2.0
"""The text encoder equals transformers' in each runtime, with an image and without, whatever shares its batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.text.encoder import TextBatch, TextEncoder
from blipstream.text.runtimes import load_text_encoder
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.export import export_matcher
from tests.reference import relative_error
from tests.support.retrieval import RetrievalReference

TOLERANCE = {"f32": 1e-5, "bf16": 3e-2}


@pytest.fixture(scope="module")
def torch_artifact(retrieval_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matcher")
    found = Checkpoint.find(str(retrieval_checkpoint))
    model = found.load_model()
    config = found.config(model, "f32")
    export_matcher(model, found.load_tokenizer(model), config, "torch", folder)
    config.save(folder)
    return folder


@pytest.fixture(scope="module", params=["openvino", "torch"])
def encoder(request: pytest.FixtureRequest, matching_artifacts: Path, torch_artifact: Path) -> TextEncoder:
    folder = {"openvino": matching_artifacts / "matcher/1/openvino", "torch": torch_artifact}[request.param]
    return load_text_encoder(request.param, folder)


def random_batch(config: CheckpointConfig, images: int, texts: int, tokens: int, patches: int, seed: int) -> TextBatch:
    random = np.random.default_rng(seed)
    return TextBatch(
        random.integers(0, config.text.vocab_size, (images, texts, tokens)),
        random.integers(1, tokens + 1, (images, texts)),
        random.integers(0, 2, (images, texts)).astype(np.bool_),
        random.standard_normal((images, patches, config.text.encoder_hidden_size), np.float32),
    )


def reference_hidden(reference: RetrievalReference, batch: TextBatch) -> torch.Tensor:
    """Each text alone, without padding: [I, R, h]."""
    rows = []
    for ids, lengths, looks, image_embeds in zip(*batch, strict=True):
        for row, length, looks_at_it in zip(ids, lengths, looks, strict=True):
            image = {"encoder_hidden_states": torch.from_numpy(image_embeds[None])} if looks_at_it else {}
            output = reference.model.text_encoder(input_ids=torch.from_numpy(row[None, :length]), **image)
            rows.append(output.last_hidden_state[0, 0])
    return torch.stack(rows).reshape(*batch.lengths.shape, -1)


def test_equals_transformers_in_any_order_of_shapes(
    encoder: TextEncoder, retrieval_reference: RetrievalReference
) -> None:
    """A runtime must not remember the sizes of an earlier batch."""
    shapes = [
        (1, 1, 8, 2),
        (1, 2, 8, 145),
        (2, 3, 16, 145),
        (1, 1, 64, 2),
        (1, 8, 8, 145),
        (4, 1, 8, 145),
        (1, 1, 8, 145),
    ]
    for seed, shape in enumerate([*shapes, *reversed(shapes)]):
        batch = random_batch(encoder.config, *shape, seed)
        ours = torch.from_numpy(encoder.encode(batch))
        assert relative_error(ours, reference_hidden(retrieval_reference, batch)) < TOLERANCE["f32"], shape


def test_bf16(torch_artifact: Path, retrieval_reference: RetrievalReference) -> None:
    encoder = load_text_encoder("torch", torch_artifact, dtype="bf16")
    assert encoder.dtype == "bf16"
    batch = random_batch(encoder.config, 2, 4, 16, 145, 0)
    ours = torch.from_numpy(encoder.encode(batch))
    assert relative_error(ours, reference_hidden(retrieval_reference, batch)) < TOLERANCE["bf16"]


def test_an_unknown_runtime(torch_artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no text encoder runtime 'x': choose one of openvino, torch"):
        load_text_encoder("x", torch_artifact)


def test_a_broken_artifact(torch_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((torch_artifact / "config.json").read_bytes())
    for runtime in ("openvino", "torch"):
        with pytest.raises(ArtifactError, match="cannot be loaded: build it"):
            load_text_encoder(runtime, tmp_path)
