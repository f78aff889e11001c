# SPDX-License-Identifier: Apache-2.0
"""A run, from the checkpoint and the data to what `blipstream build` takes."""

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from transformers import BertTokenizer, BlipForConditionalGeneration

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of TensorBoard's own imports
    from torch.utils.tensorboard import SummaryWriter

from blipstream.dtypes import cpu_has_bf16
from blipstream.errors import ArtifactError, BlipstreamError, InvalidInput
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.stages import stage
from blipstream_finetune.data import Data, Problems, read_data, split
from blipstream_finetune.embeddings import EmbeddingCache, locked
from blipstream_finetune.examples import Batches, PixelReader, Texts
from blipstream_finetune.line import Line
from blipstream_finetune.model import Trained
from blipstream_finetune.report import METRICS, write_report
from blipstream_finetune.settings import Settings
from blipstream_finetune.sources import Source
from blipstream_finetune.training import Training, shown
from blipstream_finetune.validation import Validation
from blipstream_finetune.words import add_words, load_words, unknown

WORK = "training"  # the folder in the output for what a run needs to go on
FEWEST = 4  # images
EMBED = 16  # images at once


@dataclass(frozen=True)
class Words:
    """New words: those of a tokenizer, or at most `new_tokens` that are learnt from the captions."""

    tokenizer: Path | None = None
    new_tokens: int = 0
    lowercase: bool = False


@dataclass(frozen=True)
class Work:
    """How the work is done, which changes nothing in the weights."""

    cache: Path | None = None  # of embeddings; None: in the output, until the end
    strict: bool = False
    workers: int = 1  # that decode images
    save_minutes: float = 5.0  # between two states on disk


def finetune(
    name: str,
    source: Source,
    output: Path,
    settings: Settings,
    *,
    processor: str | None = None,
    validation: float | Source = 0.05,
    words: Words = Words(),  # it cannot be changed
    language: str = "",
    work: Work = Work(),
) -> dict[str, float]:
    """Train, and write an adapter or a checkpoint to `output`. Returns the metrics of the weights that are kept.

    `validation` is a share of the images, or a source of its own. Raises BlipstreamError if anything is wrong, and
    Stopped on a signal while it trains: the same call goes on.
    """
    checkpoint = Checkpoint.find(name, processor)
    if checkpoint.is_retriever:
        raise ArtifactError(f"{checkpoint.name} is a retrieval checkpoint, which makes no captions: give a captioner")
    _check_output(output)
    with locked(output / WORK), locked(work.cache) if work.cache else nullcontext():
        return _finetune(name, checkpoint, source, output, settings, validation, words, language, work)


def _check_output(output: Path) -> None:
    if (output / METRICS).exists():
        raise BlipstreamError(f"{output} has a run that is finished: choose another --output, or remove it")
    if output.exists() and not (output / WORK).exists() and any(output.iterdir()):
        raise BlipstreamError(f"{output} has other files: choose a new folder as --output")


def _finetune(
    name: str,
    checkpoint: Checkpoint,
    source: Source,
    output: Path,
    settings: Settings,
    validation: float | Source,
    words: Words,
    language: str,
    work: Work,
) -> dict[str, float]:
    folder = output / WORK
    transformers.utils.logging.disable_progress_bar()
    with stage(f"loading {checkpoint.name}"):
        model = checkpoint.load_model()
        assert isinstance(model, BlipForConditionalGeneration)  # noqa: S101
        base, processor = checkpoint.load_tokenizer(model), checkpoint.load_image_processor(model)
        accelerator = Accelerator(mixed_precision="bf16" if _is_bf16(settings) else "no")
    text, vision = model.config.text_config, model.config.vision_config
    side, rows = vision.image_size, text.vocab_size
    cache = None
    if not settings.encoder:
        shape = ((side // vision.patch_size) ** 2 + 1, vision.hidden_size)
        cache = EmbeddingCache(work.cache or folder, checkpoint.revision, accelerator.mixed_precision, shape)

    problems = Problems()
    data = _read(source, side, folder / "images.bin", work, cache, problems)
    tokenizer = _tokenizer(words, base, rows, data)
    texts = Texts(tokenizer, settings.prompt, text.bos_token_id, text.sep_token_id, text.pad_token_id)
    data = _readable(data, texts, tokenizer, text.max_position_embeddings, problems)
    if isinstance(validation, float):
        data, held_out = split(data, validation)
    else:
        held_out = _read(validation, side, folder / "held-out.bin", work, cache, problems)
        held_out = _readable(held_out, texts, tokenizer, text.max_position_embeddings, problems)
        data = data.only(each for each in data.captions if each not in held_out.captions)
    if problems.counts:
        click.echo(f"left out:\n{problems}")
        if work.strict:
            raise InvalidInput("the data have faults, as listed above: mend them, or leave out --strict")
    if len(data.captions) < FEWEST or not held_out.captions:
        raise InvalidInput(
            f"{len(data.captions)} images are left to learn from, and {len(held_out.captions)} to validate: give at "
            f"least {FEWEST} and 1"
        )
    tokens = max(rows, len(tokenizer))
    amounts = f"{data}; held out: {held_out}; {tokens - rows} new tokens"
    click.echo(amounts)

    trained = Trained(model.to(accelerator.device), settings, tokens)
    images = PixelReader(data.places | held_out.places, side, processor.image_mean, processor.image_std)
    if cache is not None:
        _embed(trained, cache, images, [*data.places, *held_out.places], accelerator)
    pairs = texts.pairs(data)
    epoch = math.ceil(len(pairs) / settings.batch)
    steps = settings.steps or math.ceil(settings.epochs * len(pairs) / settings.batch)
    batches = Batches(pairs, cache or images, texts, settings.batch, steps, settings.seed)
    check = Validation(held_out, cache or images, texts, tokenizer, settings.metric)
    about = settings.as_dict() | {
        "steps": steps,
        "computed in": accelerator.mixed_precision,
        "new tokens": tokens - rows,
    }
    digests = {"checkpoint": checkpoint.revision, "data": data.digest, "held-out data": held_out.digest}
    training = Training(trained, batches, folder, accelerator, about | digests)
    with SummaryWriter(str(folder), purge_step=training.progress.step + 1) as writer:
        progress = training.run(
            check,
            settings.validate_steps or epoch,
            writer,
            save_seconds=60 * work.save_minutes,
            workers=work.workers,
        )
    trained.captioner.to("cpu")
    trained.save(output, checkpoint, name, language, tokenizer, progress.best)
    write_report(output, progress, about, name, language, amounts)
    for each in folder.iterdir():
        if not each.name.startswith("events."):
            each.unlink()
    click.echo(f"kept: step {progress.best_step}, {shown(progress.best)}")
    return progress.best


def _tokenizer(words: Words, base: "BertTokenizer", rows: int, data: Data) -> Any:  # noqa: ANN401
    """The base's tokenizer, or one with new words."""
    if words.tokenizer:
        return load_words(words.tokenizer, base, rows)
    if words.new_tokens:
        captions = [caption for _, caption in data.pairs]
        return add_words(base, rows, captions, words.new_tokens, lowercase=words.lowercase)
    return base


def _is_bf16(settings: Settings) -> bool:
    return settings.dtype == "bf16" or (settings.dtype == "auto" and (torch.cuda.is_available() or cpu_has_bf16()))


def _read(
    source: Source,
    side: int,
    spool: Path,
    work: Work,
    known: Sequence[str] | EmbeddingCache | None,
    problems: Problems,
) -> Data:
    """Read and check a source, without what is wrong."""
    data, line = Data(), Line()
    for data in read_data(source.items, side, problems, spool, work.workers, known or ()):
        if line.is_due:
            line.show(f"reading: {len(data.places):,} images")
    line.clear()
    if left_out := source.left_out():
        click.echo(left_out)
    return data


def _readable(data: Data, texts: Texts, tokenizer: Any, positions: int, problems: Problems) -> Data:  # noqa: ANN401
    """Without the captions that the model cannot learn."""
    altered = Problems()
    kept: dict[str, list[str]] = {}
    for digest, captions in data.captions.items():
        for caption in captions:
            ids = texts.ids(caption)
            example = data.places[digest].file, repr(caption)
            if unknown(tokenizer, caption):
                problems.add("captions with characters that the vocabulary lacks (see --new-tokens)", *example)
            elif len(ids) > positions:
                problems.add(f"captions of more than the model's {positions} tokens", *example)
            else:
                kept.setdefault(digest, []).append(caption)
                if (read := tokenizer.decode(ids[len(texts.prompt_ids) :], skip_special_tokens=True)) != caption:
                    altered.add("captions", repr(caption), f"as {read!r}")
    if altered.counts:
        click.echo(f"not given back as they are by the vocabulary (see --new-tokens):\n{altered}")
    return Data(data.places, kept).only(data.places)


def _embed(
    trained: Trained, cache: EmbeddingCache, pixels: PixelReader, digests: Sequence[str], accelerator: Accelerator
) -> None:
    """Compute the embeddings that are not there yet."""
    missing, line = [each for each in digests if each not in cache], Line()
    trained.captioner.eval()
    for start in range(0, len(missing), EMBED):
        some = missing[start : start + EMBED]
        with torch.inference_mode(), accelerator.autocast():
            embeds = trained.embed(pixels.get(some).to(accelerator.device))
        cache.add(some, embeds.float().cpu().numpy().astype(np.float16))
        if line.is_due:
            line.show(f"embedding: {start + len(some):,} of {len(missing):,} images")
    line.clear()
