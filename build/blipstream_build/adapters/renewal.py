# SPDX-License-Identifier: Apache-2.0
"""Convert an adapter, compare it with PEFT, and install it. Importing this takes seconds."""

import shutil

import click
import torch
from safetensors.torch import load_file, save_file

from blipstream.adapters import WEIGHTS_NAME, AdapterConfig
from blipstream.config import CheckpointConfig
from blipstream.decoding import WEIGHTS_NAME as DECODER_NAME
from blipstream.text.tokenizer import TOKENIZER_NAME
from blipstream_build.adapters.convert import adapter_weights, check_tokenizer
from blipstream_build.adapters.peft_folder import PeftFolder
from blipstream_build.artifacts import FINGERPRINT, Artifact


@torch.inference_mode()
def renew(name: str, adapter: PeftFolder, artifact: Artifact, settings: CheckpointConfig, language: str | None) -> None:
    """Convert an adapter, compare it with PEFT, and install it as `name`. Raises ArtifactError if it does not fit."""
    decoder = artifact.folder.parents[1] / "artifact"
    embedding = load_file(decoder / DECODER_NAME)["word_embedding.weight"]
    weights = adapter_weights(adapter, embedding, settings.text)
    num_words = len(weights.get("word_embedding", ()))
    check_tokenizer(adapter, decoder / TOKENIZER_NAME, settings.text, num_words)
    config = AdapterConfig(
        settings.checkpoint,
        settings.revision,
        adapter.revision,
        adapter.language if language is None else language,
        num_words,
        adapter.metrics,
    )
    with artifact.staging(sum(weight.nbytes for weight in weights.values())) as staged:
        folder = staged / name
        folder.mkdir()
        save_file(weights, folder / WEIGHTS_NAME, {FINGERPRINT: artifact.fingerprint})
        (folder / WEIGHTS_NAME).chmod(0o644)  # a server may run as another user
        if num_words:
            shutil.copyfile(adapter.folder / TOKENIZER_NAME, folder / TOKENIZER_NAME)
        config.save(folder)
        artifact.install(folder)
    click.echo(f"installed adapter {name} in {artifact.folder.parent}")
