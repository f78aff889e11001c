# SPDX-License-Identifier: Apache-2.0
"""The loop. Whoever is killed goes on at the last state on disk, and ends with the same weights."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from blipstream import signals
from blipstream.errors import BlipstreamError
from blipstream_finetune.examples import IGNORED, Batch, Batches
from blipstream_finetune.line import Line
from blipstream_finetune.model import Trained
from blipstream_finetune.settings import MAX_NORM, Settings
from blipstream_finetune.validation import Validation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STATE, BEST = "state.pt", "best.safetensors"
LOG_STEPS = 10  # the losses of so many steps are one point of the curve
RISE, START, END = 0.3, 1 / 25, 1e-4  # of one cycle: its first part, and the rates at both ends as parts of the highest


class Stopped(Exception):
    """A signal has stopped the training, which can go on."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped after step {step}: the same command goes on from there")
        self.status = 128 + number


@dataclass
class Progress:
    """What is known after a number of steps."""

    step: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # the metrics then
    worse: int = 0  # validations since
    recent: list[float] = field(default_factory=list)  # the losses of the last few steps
    losses: list[tuple[int, float]] = field(default_factory=list)  # steps and the mean loss up to them
    validations: list[tuple[int, dict[str, float]]] = field(default_factory=list)


class Training:
    """One run, in a folder that holds its state."""

    def __init__(
        self, trained: Trained, batches: Batches, folder: Path, accelerator: Accelerator, description: dict[str, Any]
    ) -> None:
        """Take up the state in the folder, if there is one.

        `description` is all that decides the weights. Raises BlipstreamError if the state belongs to another one.
        """
        self._trained, self._batches, self._folder, self._accelerator = trained, batches, folder, accelerator
        self._settings: Settings = trained.settings
        self._description = json.loads(json.dumps(description))
        self._optimizer = torch.optim.AdamW(
            trained.parameters.values(), lr=self._settings.learning_rate, weight_decay=self._settings.weight_decay
        )
        self.progress = Progress()
        if (folder / STATE).exists():
            self._load()

    def run(
        self,
        validation: Validation,
        validate_steps: int,
        writer: "SummaryWriter",
        *,
        save_seconds: float,
        workers: int,
    ) -> Progress:
        """Train to the end, and leave the model with the best weights. Raises Stopped on a signal."""
        progress, steps = self.progress, len(self._batches)
        line, first, began = Line(), progress.step, time.monotonic()
        saved_at, recent = began, progress.recent
        self._trained.captioner.train()
        with _stop_signal() as stop:
            for batch in self._batches.following(progress.step, workers):
                if self._is_over:
                    break
                recent.append(self._step(batch))
                progress.step += 1
                if line.is_due:
                    rate = (progress.step - first) / (time.monotonic() - began)
                    left = timedelta(seconds=int((steps - progress.step) / rate))
                    line.show(f"step {progress.step}/{steps}, loss {recent[-1]:.4f}, {rate:.2f} steps/s, {left} left")
                if progress.step % LOG_STEPS == 0 or progress.step == steps:
                    progress.losses.append((progress.step, sum(recent) / len(recent)))
                    writer.add_scalar("loss/training", progress.losses[-1][1], progress.step)
                    recent.clear()
                validated = progress.step % validate_steps == 0 or progress.step == steps
                if validated:
                    self._validate(validation, writer)
                    line.say(f"step {progress.step}: " + shown(progress.validations[-1][1]))
                if stop or validated or time.monotonic() - saved_at >= save_seconds:
                    self._save()
                    saved_at = time.monotonic()
                if stop:
                    raise Stopped(stop[0], progress.step)
        line.clear()
        self._trained.load(load_file(self._folder / BEST))
        return progress

    @property
    def _is_over(self) -> bool:
        return self._settings.patience is not None and self.progress.worse >= self._settings.patience

    def _step(self, batch: Batch) -> float:
        """One step of the optimizer. Returns the loss."""
        settings, accelerator = self._settings, self._accelerator
        rate = learning_rate(settings, self.progress.step, len(self._batches))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        total, loss = int((batch.labels != IGNORED).sum()), 0.0
        for part in zip(*(each.chunk(settings.accumulate) for each in batch), strict=True):
            piece = Batch(*(each.to(accelerator.device) for each in part))
            piece = piece._replace(images=piece.images.float())
            share = int((piece.labels != IGNORED).sum()) / total
            with accelerator.autocast():
                part_loss = self._trained.loss(piece, settings.label_smoothing) * share
            accelerator.backward(part_loss)
            loss += float(part_loss.detach())
        if not math.isfinite(loss):
            raise BlipstreamError(
                f"the loss is {loss} at step {self.progress.step + 1}: train with a lower --learning-rate than "
                f"{settings.learning_rate}"
            )
        torch.nn.utils.clip_grad_norm_(self._trained.parameters.values(), MAX_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _validate(self, validation: Validation, writer: "SummaryWriter") -> None:
        progress = self.progress
        with self._accelerator.autocast():
            metrics = validation(self._trained)
        progress.validations.append((progress.step, metrics))
        for name, value in metrics.items():
            writer.add_scalar(f"{name}/validation", value, progress.step)
        if validation.is_better(metrics, progress.best):
            progress.best, progress.best_step, progress.worse = metrics, progress.step, 0
            weights = {name: each.detach().cpu().contiguous() for name, each in self._trained.parameters.items()}
            with _replaced(self._folder / BEST) as path:
                save_file(weights, path)
        else:
            progress.worse += 1

    def _save(self) -> None:
        state = {
            "description": self._description,
            "progress": vars(self.progress),
            "weights": {name: each.detach() for name, each in self._trained.parameters.items()},
            "optimizer": self._optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }
        with _replaced(self._folder / STATE) as path:
            torch.save(state, path)

    def _load(self) -> None:
        try:
            state = torch.load(self._folder / STATE, map_location="cpu", weights_only=True)
        except Exception as exc:  # torch raises many kinds
            raise BlipstreamError(
                f"{self._folder / STATE} cannot be read ({exc}): remove {self._folder} to begin anew"
            ) from exc
        before, now = state["description"], self._description
        if other := [
            f"{name} {before.get(name)!r}, not {now[name]!r}" for name in now if before.get(name) != now[name]
        ]:
            raise BlipstreamError(
                f"{self._folder} has a run with {'; '.join(other)}: give the same command to go on, or another --output"
            )
        self.progress = Progress(**state["progress"])
        self._trained.load(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if len(state["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        click.echo(f"going on after step {self.progress.step} of {len(self._batches)}")


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """The rate of a step, counted from 0.

    Sources: for LoRA, Smith and Topin, Super-Convergence, 2018; else half a cosine, as BLIP's authors have epoch by
    epoch.
    """
    highest = settings.learning_rate
    if not settings.lora:
        return highest * (1 + math.cos(math.pi * step / steps)) / 2
    rise = RISE * steps
    begin, end, share = (START, 1.0, step / rise) if step < rise else (1.0, END, (step - rise) / (steps - rise))
    return highest * (end + (begin - end) * (1 + math.cos(math.pi * share)) / 2)


def shown(metrics: dict[str, float]) -> str:
    """Metrics in a line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Gets the number of the first stop signal. The second one ends the process at once."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        received.append(number)
        signals.exit_on_signals(128 + number)
        click.echo("\nstopping after this step; once more to stop at once", err=True)

    with signals.restored():
        signals.handle(stop)
        yield received


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` as a whole."""
    new = path.with_name(f"{path.name}.new")
    try:
        yield new
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except (OSError, RuntimeError, SafetensorError) as exc:  # what PyTorch makes of a full disk is a RuntimeError
        new.unlink(missing_ok=True)
        raise BlipstreamError(f"cannot write {path} ({exc}): make room there, and give the same command again") from exc
