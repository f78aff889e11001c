# SPDX-License-Identifier: Apache-2.0
"""The matcher: jobs to logits and embeddings, without threads and without Triton.

As in the authors' training, a text that is read with an image begins with [ENC], and one that is read alone with [CLS].
transformers' processor leaves [CLS] in both cases, and so did the authors' demo, which costs accuracy. Source:
models/blip_retrieval.py of github.com/salesforce/BLIP.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream.config import CheckpointConfig, DType
from blipstream.cuda_graphs import bucket
from blipstream.errors import InvalidInput
from blipstream.heatmaps import by_word, explanation
from blipstream.matching.heads import Heads
from blipstream.matching.job import SHORTEST, Chunk, Job
from blipstream.matching.texts import TextReader
from blipstream.matching.turns import Turns
from blipstream.options import ExplainOptions, check_part
from blipstream.text.encoder import TextBatch, TextEncoder
from blipstream.text.runtimes import load_text_encoder
from blipstream.text.tokenizer import Tokenizer

# Tokens of the image where there is none. Not 1: if the first image has one token, OpenVINO 2026.4 attends to the first
# token of all later images alone
NO_IMAGE = 2


class Matcher:
    """Reads chunks of jobs. Not thread-safe: one thread drives it."""

    def __init__(self, encoder: TextEncoder, heads: Heads, reader: TextReader) -> None:
        self.config = encoder.config
        self.dtype = encoder.dtype
        self.heads = heads
        self.reader = reader
        self._encoder = encoder

    @classmethod
    def load(cls, runtime: str, folder: Path, device: str = "cpu", dtype: DType | None = None) -> "Matcher":
        """An artifact's matcher, in its own dtype unless another is given. Raises ArtifactError if it is broken."""
        config = CheckpointConfig.load(folder)
        reader = TextReader(Tokenizer(folder, config.text), config)
        return cls(load_text_encoder(runtime, folder, device, dtype), Heads(folder), reader)

    def check(self, image_embeds: npt.NDArray[Any]) -> None:
        """Raise InvalidInput unless image_embeds [B, N, E] have the checkpoint's shape."""
        vision = self.config.vision
        shape = [1 + (vision.image_size // vision.patch_size) ** 2, vision.hidden_size]
        if list(image_embeds.shape[1:]) != shape:
            raise InvalidInput(f"image_embeds must have shape {shape}, not {list(image_embeds.shape[1:])}")

    def check_explained(self, options: ExplainOptions) -> None:
        """Raise InvalidInput if the text encoder has no such layer or head."""
        text = self.config.text
        last = f"of this model's {text.num_layers} layers, the last has no gradients at words"
        check_part("layer", options.layer, text.num_layers - 1, last)
        check_part("head", options.head, text.num_heads, f"this model's text encoder has {text.num_heads}")

    def warm_up(self) -> None:
        """Read once what would make the first requests wait."""
        image_embeds = np.zeros((NO_IMAGE, self.config.text.encoder_hidden_size), np.float32)
        self.finish([Job([[0] * SHORTEST], image_embeds)])

    def finish(self, jobs: Sequence[Job]) -> None:
        """Read all that is left of some jobs, each of a request of its own."""
        turns = Turns()
        for job in jobs:
            turns.add([job])
        while batch := turns.take_batch():
            self.read(batch)

    def read(self, chunks: Sequence[Chunk]) -> Sequence[None]:
        """Read chunks of one shape in one batch, and write what comes of them into their jobs."""
        if chunks[0].shape.explains:
            for chunk in chunks:
                self._explain(chunk.job)
            return [None] * len(chunks)
        hidden = self._encoder.encode(self._batch(chunks))[: len(chunks)]
        for chunk, rows in zip(chunks, hidden, strict=True):
            job = chunk.job
            logits, embeddings = self.heads.logits(rows), self.heads.text_embeddings(rows)
            for number, row in enumerate(chunk.rows):
                if row.looks:
                    job.logits[row.text] = logits[number]
                else:
                    job.embeddings[row.text] = embeddings[number]
        return [None] * len(chunks)

    def _explain(self, job: Job) -> None:
        """Write a job's logit, and where in the image each word of its text finds it."""
        assert job.explain is not None
        assert job.image_embeds is not None
        (ids,) = job.texts
        words, positions = self.reader.words(ids)
        ids = [self.config.match_config.pair_token_id, *ids[1:]]
        way, direction = job.explain, self.heads.direction
        hidden, maps = self._encoder.gradients(ids, job.image_embeds, direction, way.layer, way.head)
        job.logits[0] = self.heads.logits(hidden)
        job.explanation = explanation(words, by_word(maps, positions))

    def _batch(self, chunks: Sequence[Chunk]) -> TextBatch:
        """Chunks as padded arrays. The number of images is a power of two, too, so that few shapes occur."""
        shape, images = chunks[0].shape, bucket(len(chunks))
        tokens = min(shape.tokens, self.config.text.max_positions)
        ids = np.zeros((images, shape.rows, tokens), np.int64)
        lengths, looks = np.ones(ids.shape[:2], np.int64), np.zeros(ids.shape[:2], np.bool_)
        size = (images, max(shape.image_tokens, NO_IMAGE), self.config.text.encoder_hidden_size)
        image_embeds: npt.NDArray[np.float32] = np.zeros(size, np.float32)
        for image, chunk in enumerate(chunks):
            for number, row in enumerate(chunk.rows):
                ids[image, number, : row.length] = chunk.job.texts[row.text]
                lengths[image, number], looks[image, number] = row.length, row.looks
                if row.looks:
                    ids[image, number, 0] = self.config.match_config.pair_token_id
            if chunk.job.image_embeds is not None:
                image_embeds[image] = chunk.job.image_embeds
        return TextBatch(ids, lengths, looks, image_embeds)
