# SPDX-License-Identifier: Apache-2.0
"""The engine for a GPU: shapes that repeat, so that a step is one graph, and one synchronisation.

Requests of one strategy and width share a lane. A lane's step, from tokens to tokens, runs on the device; the host
reads one report of all lanes and moves requests in and out. On a CPU it does the same without graphs, which is how
the tests hold it against transformers where there is no GPU.
"""

import torch
from torch import Tensor

from blipstream.config import CheckpointConfig
from blipstream.cuda_graphs import WARM_UP_SIZES
from blipstream.decoding.engine import Engine, Request
from blipstream.decoding.lanes import LANES, Lane
from blipstream.options import DecodingOptions
from blipstream.text.decoder import TextDecoder
from blipstream.text.tokenizer import Tokenizer

MAX_ROWS = 512
ROOM_TO_KEEP = 2**16  # tokens; on base in f16 2.4 GB. With more, lanes give back what is not in use before one grows


class GraphedEngine(Engine):
    """See Engine."""

    max_rows = MAX_ROWS

    def __init__(self, decoder: TextDecoder, tokenizer: Tokenizer, config: CheckpointConfig, dtype: str) -> None:
        super().__init__(decoder, tokenizer, config, dtype)
        self._device = decoder.head_bias.device
        if self._device.type == "cuda":
            self.warm_up_counts = WARM_UP_SIZES
            # PyTorch hands out few streams, again and again; of this priority, none records a graph
            self._copies = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]
        self._lanes: dict[tuple[str, int], Lane] = {}

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """See Engine."""
        self._join()
        lanes = [lane for lane in self._lanes.values() if lane.rows]
        reports = self._on_host([lane.step() for lane in lanes])
        finished = []
        for lane, report in zip(lanes, reports, strict=True):
            for request, sequences in lane.collect(report):
                self._finish(request, sequences)
                finished.append(request)
        return finished

    @property
    def rows(self) -> int:
        """See Engine."""
        return sum(lane.rows for lane in tuple(self._lanes.values()))  # others ask while a step adds a lane

    def reset(self) -> None:
        """See Engine."""
        super().reset()
        self._lanes.clear()

    @torch.inference_mode()
    def _drop(self, request: Request) -> None:
        for lane in self._lanes.values():
            lane.drop(request)

    def _copy(self, image_embeds: Tensor) -> Tensor:
        """See Engine. What lies on a GPU must be written already, as Triton's Python backend sees to."""
        if self._device.type != "cuda":
            return super()._copy(image_embeds)
        # Triton takes the original back at once, and on the engine's stream the copy would wait for the step under way
        with torch.cuda.stream(self._copies):
            copy = image_embeds.to(self._decoder.head_bias, copy=True)
        self._copies.synchronize()
        return copy  # the request holds it until the step that reads it has ended, so no other gets its memory before

    def _join(self) -> None:
        """Give those that are taken up a slot in their lane."""
        joined: dict[Lane, list[Request]] = {}
        for request in self._admit(self.rows):
            joined.setdefault(self._lane(request.options), []).append(request)
        for lane, requests in joined.items():
            if not lane.has_room(requests) and sum(each.room for each in self._lanes.values()) > ROOM_TO_KEEP:
                for each in self._lanes.values():
                    each.shrink()
            lane.add(requests)

    def _lane(self, options: DecodingOptions) -> Lane:
        key = (options.strategy, options.max_rows)
        if key not in self._lanes:
            self._lanes[key] = LANES[options.strategy](self._decoder, options.max_rows, self._num_patches)
        return self._lanes[key]

    def _on_host(self, reports: list[Tensor]) -> list[Tensor]:
        if self._device.type != "cuda":
            return reports
        copies = [torch.empty_like(report, device="cpu", pin_memory=True) for report in reports]
        for copy, report in zip(copies, reports, strict=True):
            copy.copy_(report, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return copies
