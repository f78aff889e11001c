# SPDX-License-Identifier: Apache-2.0
"""An encoder in 8 bits: what must be known to scale its linear layers, and whether its captions are still f32's."""

from collections.abc import Iterator
from math import sqrt
from operator import eq
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blipstream.decoding import Engine
from blipstream.images.shapes import Pixels
from blipstream.options import DecodingOptions
from blipstream.vision import Encoder

LEAST_AGREEMENT = 0.98  # the share of captions that must stay as they are
BATCH = 16  # images


class Agreement(NamedTuple):
    """How near an encoder comes to the one in f32 on images that did not calibrate it."""

    images: int
    equal: int  # images with the same caption
    relative: float  # ‖ours - theirs‖ / ‖theirs‖ of the image_embeds

    @property
    def fault(self) -> str:
        """Why the encoder may not be served, or "" if it may."""
        if self.equal >= LEAST_AGREEMENT * self.images:
            return ""
        return (
            f"only {self.equal} of {self.images} captions ({self.equal / self.images:.1%}) are f32's, where "
            f"{LEAST_AGREEMENT:.0%} must be (calibrate on more images, or choose another dtype)"
        )


@torch.inference_mode()
def largest_inputs(encoder: nn.Module, pixels: Pixels) -> dict[str, float]:
    """The largest absolute value that each linear layer takes in, by the layer's name.

    `pixels` are what `encoder` takes, uint8 [B, H, W, 3].
    """
    largest: dict[str, float] = {}

    def observe(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return layer.register_forward_pre_hook(note)

    hooks = [observe(name, layer) for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear)]
    for batch in _batches(pixels):
        encoder(torch.from_numpy(batch))
    for hook in hooks:
        hook.remove()
    return largest


@torch.inference_mode()
def agreement(encoder: Encoder, reference: nn.Module, engine: Engine, pixels: Pixels) -> Agreement:
    """Compare an encoder with the one in f32 that it was made from, on uint8 pixels [B, H, W, 3].

    Both captions of an image are greedy, and from the same decoder.
    """
    equal, error, norm = 0, 0.0, 0.0
    for batch in _batches(pixels):
        ours, theirs = torch.as_tensor(encoder.encode(batch)).cpu(), reference(torch.from_numpy(batch))
        error += float((ours.double() - theirs.double()).square().sum())
        norm += float(theirs.double().square().sum())
        requests = [engine.request(embeds, DecodingOptions()) for embeds in (*ours.half(), *theirs.half())]
        engine.generate(requests)
        captions = [request.captions[0].text for request in requests]
        equal += sum(map(eq, captions[: len(batch)], captions[len(batch) :]))
    return Agreement(len(pixels), equal, sqrt(error / norm))


def _batches(pixels: Pixels) -> Iterator[Pixels]:
    return (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
