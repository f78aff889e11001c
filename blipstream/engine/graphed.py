# SPDX-License-Identifier: Apache-2.0
"""The engine for a GPU: shapes that repeat, so that a step is one graph, and one synchronisation.

Requests of one strategy and width share a lane. A lane's step, from tokens to tokens, runs on the device; the host
reads one report of all lanes and moves requests in and out. On a CPU it does the same without graphs, which is how
the tests hold it against transformers where there is no GPU.
"""

import torch
from torch import Tensor

from blipstream.config import CheckpointConfig
from blipstream.decoder import TextDecoder
from blipstream.engine.base import Engine, Request
from blipstream.engine.lanes import BeamLane, GreedyLane, Lane, SampleLane
from blipstream.options import DecodingOptions
from blipstream.tokenizer import Tokenizer

MAX_ROWS = 512


class GraphedEngine(Engine):
    """See Engine."""

    max_rows = MAX_ROWS

    def __init__(self, decoder: TextDecoder, tokenizer: Tokenizer, config: CheckpointConfig, dtype: str) -> None:
        super().__init__(decoder, tokenizer, config, dtype)
        self._device = decoder.head_bias.device
        if self._device.type == "cuda":
            # the largest first, so that buffers are made once; the second run of each records its graph
            self.warm_up_counts = tuple(count for count in (64, 32, 16, 8, 4, 2, 1) for _ in range(2))
        self._lanes: dict[tuple[type[Lane], int], Lane] = {}

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
        return sum(lane.rows for lane in self._lanes.values())

    def reset(self) -> None:
        """See Engine."""
        self._waiting.clear()
        self._lanes.clear()

    @torch.inference_mode()
    def _drop(self, request: Request) -> None:
        for lane in self._lanes.values():
            lane.drop(request)

    def _join(self) -> None:
        """Take up waiting requests, in their order, while there are rows for them."""
        joined: dict[Lane, list[Request]] = {}
        rows = self.rows
        while self._waiting and (not rows or rows + self._waiting[0].options.max_rows <= self.max_rows):
            request = self._waiting.popleft()
            joined.setdefault(self._lane(request.options), []).append(request)
            rows += request.options.max_rows
        for lane, requests in joined.items():
            lane.add(requests)

    def _lane(self, options: DecodingOptions) -> Lane:
        kind = SampleLane if options.do_sample else BeamLane if options.num_beams > 1 else GreedyLane
        key = (kind, options.max_rows)
        if key not in self._lanes:
            self._lanes[key] = kind(self._decoder, options.max_rows, self._num_patches)
        return self._lanes[key]

    def _on_host(self, reports: list[Tensor]) -> list[Tensor]:
        if self._device.type != "cuda":
            return reports
        copies = [torch.empty_like(report, device="cpu", pin_memory=True) for report in reports]
        for copy, report in zip(copies, reports, strict=True):
            copy.copy_(report, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return copies
