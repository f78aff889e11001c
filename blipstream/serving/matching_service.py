# SPDX-License-Identifier: Apache-2.0
"""A matcher as Triton's model runs it: with a queue in which large requests take turns, metrics and telemetry."""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

import numpy as np

from blipstream.calibration import Calibration
from blipstream.config import MATCHING_ARTIFACTS, image_encoder_of, of_one_checkpoint
from blipstream.errors import BlipstreamError, InvalidInput, Stopping, apart, report
from blipstream.matching import Job, Matcher
from blipstream.matching.heads import probabilities
from blipstream.matching.ranking import Candidates
from blipstream.matching.texts import SPECIAL_TOKENS
from blipstream.matching.turns import Turns
from blipstream.options import (
    EXPLAINED_TEXT,
    MATCH_MAPS,
    MATCHING_OPTION_NAMES,
    NUM_CAPTIONS,
    ExplainOptions,
    RerankOptions,
    check_explained_tokens,
    check_num_texts,
)
from blipstream.serving.adapter import ModelInstance, Outputs, TritonRequest
from blipstream.serving.backpressure import ROOM, Backpressure
from blipstream.serving.metrics import MatchingMetrics
from blipstream.serving.responses import explanation_outputs

MAX_WAITING = 64  # requests with texts to be read; the others wait in Triton's queue, which drops what is too late
SCORES = ("score", "num_tokens", "token_scores")  # of captions: with them, texts are candidates
TEXT_INPUTS = ("text", *MATCHING_OPTION_NAMES)  # those of the model `embed_text`
INPUTS = (
    "image_embeds",
    "text",
    *MATCHING_OPTION_NAMES,
    *SCORES,
    NUM_CAPTIONS,
    "min_match",
    EXPLAINED_TEXT,
    *MATCH_MAPS,
)
WATCH_SECONDS = 0.1  # how long a request may be late, or its client gone, before its place is free


@dataclass(eq=False)
class _Pending:
    """A request that waits for its jobs, one for each image, or for each text where there is no image."""

    request: TritonRequest
    jobs: list[Job]
    candidates: Candidates | None = None  # of which the best come back
    began: float = field(default_factory=time.monotonic)

    @property
    def is_done(self) -> bool:
        return all(job.is_done for job in self.jobs)


class MatchingService:
    """Takes requests from Triton's thread. One thread of its own reads the texts of many together, and responds."""

    def __init__(self, instance: ModelInstance) -> None:
        """Raises ArtifactError if there is no such matcher, or it belongs to another encoder than those around it.

        The same if its calibration is broken, or of another checkpoint.
        """
        self._instance = instance
        runtime = instance.parameters["runtime"]
        artifact = of_one_checkpoint(instance.folder / runtime)
        self._has_encoder = image_encoder_of(artifact, instance.folder.parents[1]) in MATCHING_ARTIFACTS
        calibration = Calibration.of(artifact)
        self._temperature = calibration.temperature if calibration else 1.0
        self._matcher = Matcher.load(runtime, artifact, instance.device)
        self._metrics = MatchingMetrics(instance.pb_utils.MetricFamily, instance.name)
        self._backpressure = Backpressure()
        self._backpressure.add_room(ROOM[instance.device.partition(":")[0]])
        self._turns = Turns()
        self._pending: dict[_Pending, None] = {}  # in the order of their arrival
        self._closed = False
        self._changed = Condition()  # guards the three above
        self._watched = 0.0  # when the pending requests were last looked through, in seconds of time.monotonic
        self._matcher.warm_up()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, triton_requests: Iterable[Any]) -> None:
        """Read requests, and respond once their texts are read. Waits while too many are pending."""
        for request in map(self._instance.request, triton_requests):
            with request.refused_on_error():
                pending = _Pending(request, *self._read(request))
                request.release_inputs()
                self._add(pending)
        self._instance.export_counts()

    def close(self) -> None:
        """Refuse what still waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for pending in tuple(self._pending):
            self._end(pending, Stopping("the server is shutting down: ask another one"))
        self._instance.close()

    def _read(self, request: TritonRequest) -> tuple[list[Job], Candidates | None]:
        """What a request asks for. Raises InvalidInput."""
        arrays = request.arrays(*INPUTS)
        request.refuse_parameters(INPUTS if "image_embeds" in arrays else TEXT_INPUTS)
        image_embeds, texts = arrays.get("image_embeds"), arrays.get("text")
        has_candidates = not arrays.keys().isdisjoint(SCORES)
        if image_embeds is not None:
            if self._has_encoder or not has_candidates:  # else they are the ones that the captioner has taken up
                self._backpressure.take(len(image_embeds), again=has_candidates)  # whatever becomes of them
            self._matcher.check(image_embeds)
            image_embeds = image_embeds.copy()  # before their memory is given back
        if image_embeds is not None and EXPLAINED_TEXT in arrays:
            return self._explained_jobs(arrays, image_embeds), None
        if texts is None:
            if image_embeds is None:
                raise InvalidInput("image_embeds or text must be given, and neither is: send one, or both")
            return [Job([], embeds) for embeds in image_embeds], None
        check_num_texts(*texts.shape)
        if has_candidates:
            return self._candidate_jobs(arrays, image_embeds)
        if image_embeds is None and texts.shape[1] != 1:
            raise InvalidInput(f"text must be one text to be embedded, not {texts.shape[1]}: send several requests")
        truncate = arrays.get("truncate", np.zeros((len(texts), 1), np.bool_))
        read = [
            self._matcher.reader.read(list(row), truncate=bool(cut))
            for row, (cut,) in zip(texts, truncate, strict=True)
        ]
        if image_embeds is None:
            return [Job(ids) for ids in read], None
        return [Job(ids, embeds) for ids, embeds in zip(read, image_embeds, strict=True)], None

    def _explained_jobs(self, arrays: Mapping[str, Any], image_embeds: Any) -> list[Job]:  # noqa: ANN401
        """Jobs that explain how each image matches its text. Raises InvalidInput."""
        options = {name: arrays[name] for name in MATCH_MAPS if name in arrays}
        ways = ExplainOptions.from_rows(options, len(image_embeds))
        for way in ways:
            self._matcher.check_explained(way)
        read = [self._matcher.reader.read_explained(text) for (text,) in arrays[EXPLAINED_TEXT]]
        check_explained_tokens(sum(len(ids) - SPECIAL_TOKENS for ids in read))
        each = zip(read, image_embeds, ways, strict=True)
        return [Job([ids], embeds, embeds_texts=False, explain=way) for ids, embeds, way in each]

    def _candidate_jobs(self, arrays: Mapping[str, Any], image_embeds: Any) -> tuple[list[Job], Candidates]:  # noqa: ANN401
        """Jobs that read each image's captions. Raises InvalidInput."""
        if missing := [name for name in ("image_embeds", *SCORES) if name not in arrays]:
            raise InvalidInput(f"{missing[0]} must be given with the captions: send all outputs of a decoder")
        options = RerankOptions.from_rows(arrays, len(arrays["text"]), self._instance.defaults)
        score, num_tokens, token_scores = (arrays[name].copy() for name in SCORES)
        candidates = Candidates(arrays["text"], score, num_tokens, token_scores, options)
        read = [[self._matcher.reader.read_caption(caption) for caption in row] for row in candidates.texts]
        jobs = [Job(ids, embeds, embeds_texts=False) for ids, embeds in zip(read, image_embeds, strict=True)]
        return jobs, candidates

    def _add(self, pending: _Pending) -> None:
        with self._changed:
            if self._is_full():
                with self._backpressure.full():
                    self._changed.wait_for(lambda: not self._is_full() or self._closed)
            self._turns.add(pending.jobs)
            self._pending[pending] = None
            self._changed.notify_all()

    def _is_full(self) -> bool:
        return len(self._pending) >= MAX_WAITING

    # the service's own thread

    def _run(self) -> None:
        while self._await_work():
            try:
                self._drop_late()
                self._read_batch()
                for pending in [pending for pending in tuple(self._pending) if pending.is_done]:
                    self._end(pending, self._outputs(pending))
                self._metrics.update(len(self._pending))
                self._instance.export_counts()
            except Exception as exc:  # nobody knows whose fault it is, and the others wait on
                report(exc)

    def _await_work(self) -> bool:
        """Return True once something is pending, or False once this is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            return not self._closed

    def _drop_late(self) -> None:
        """Refuse the requests whose time is up, or whose clients have gone."""
        if time.monotonic() < self._watched + WATCH_SECONDS:
            return
        for pending in tuple(self._pending):
            try:
                pending.request.deadline.left()
            except Exception as exc:
                self._end(pending, report(exc))
        self._watched = time.monotonic()

    def _read_batch(self) -> None:
        """Read the texts whose turn it is. A job at which that fails spoils no other."""
        with self._changed:
            batch = self._turns.take_batch()
        failed: dict[Job, BlipstreamError] = {}
        for chunk, result in zip(batch, apart(self._matcher.read, batch), strict=True):
            if isinstance(result, BlipstreamError):
                failed[chunk.job] = result
        for pending in tuple(self._pending) if failed else ():
            error = next((failed[job] for job in pending.jobs if job in failed), None)
            if error:
                self._end(pending, error)
        if batch:
            self._metrics.count(sum(len(chunk.rows) for chunk in batch))

    def _outputs(self, pending: _Pending) -> Outputs | BlipstreamError:
        try:
            jobs, heads = pending.jobs, self._matcher.heads
            images = [job.image_embeds for job in jobs if job.image_embeds is not None]
            if not images:
                return {"embedding": np.stack([job.embeddings[0] for job in jobs])}
            if not jobs[0].texts:
                return {"embedding": heads.image_embedding(np.stack(images))}
            if pending.candidates:
                return pending.candidates.ranked(
                    [job.logits for job in jobs], [probabilities(job.logits, self._temperature) for job in jobs]
                )
            logits = np.stack([job.logits for job in jobs])
            explanations = [job.explanation for job in jobs if job.explanation]
            if explanations:
                matches = {"match": probabilities(logits, self._temperature), "logit": logits}
                return explanation_outputs(explanations) | matches
            similarities = [heads.similarities(image, job.embeddings) for image, job in zip(images, jobs, strict=True)]
            return {
                "match": probabilities(logits, self._temperature),
                "logit": logits,
                "similarity": np.stack(similarities),
            }
        except Exception as exc:
            return report(exc)

    def _end(self, pending: _Pending, result: Outputs | BlipstreamError) -> None:
        """Forget a request, and respond to it."""
        with self._changed:
            self._pending.pop(pending, None)
            self._turns.remove(pending.jobs)
            self._changed.notify_all()
        if isinstance(result, BlipstreamError):
            pending.request.refuse(result)
            return
        with suppress(Exception):  # its client has gone, and the others wait
            pending.request.send(pending.request.response(result, time.monotonic() - pending.began))
