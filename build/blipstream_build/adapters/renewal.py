# SPDX-License-Identifier: Apache-2.0
"""Convert an adapter, compare it with PEFT, and install it. Importing this takes seconds."""

import shutil

import click
import transformers
from safetensors.torch import load_file, save_file

from blipstream.adapters import WEIGHTS_NAME, AdapterConfig
from blipstream.config import CheckpointConfig
from blipstream.decoding import WEIGHTS_NAME as DECODER_NAME
from blipstream.decoding import Engine
from blipstream.errors import ArtifactError
from blipstream.files import SAMPLES
from blipstream.text.tokenizer import TOKENIZER_NAME
from blipstream_build.adapters.convert import adapter_weights, check_tokenizer
from blipstream_build.adapters.peft_folder import PeftFolder
from blipstream_build.adapters.verify import verify
from blipstream_build.artifacts import FINGERPRINT, Artifact
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.stages import stage
from blipstream_build.verify import show


def renew(
    name: str,
    adapter: PeftFolder,
    artifact: Artifact,
    settings: CheckpointConfig,
    checkpoint: Checkpoint,
    language: str | None,
) -> None:
    """Convert an adapter, compare it with PEFT, and install it as `name`. Raises ArtifactError if it does not fit."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
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
        with stage(f"comparing adapter {name} with PEFT"):
            # f16 is for a GPU, which this machine need not have
            engine = Engine.load(decoder, dtype="f32" if settings.dtype == "f16" else None, adapters=staged)
            tokenizer = (folder if num_words else decoder) / TOKENIZER_NAME
            report = verify(name, adapter, checkpoint, engine, num_words, tokenizer, sorted(SAMPLES.glob("*.jpg")))
        show([report.stage])
        equal = sum(each.ours == each.theirs for each in report.captions)
        click.echo(f"  captions   {equal} of {len(report.captions)} equal PEFT's, such as {report.captions[0].ours!r}")
        if report.fault:
            raise ArtifactError(f"{report.fault}: adapter {name} was not installed")
        artifact.install(folder)
