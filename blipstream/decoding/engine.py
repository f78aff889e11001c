# SPDX-License-Identifier: Apache-2.0
"""The decoding engine: it brings all requests that run one token further, step by step.

Requests of one strategy and width share a batch. On a CPU, one forward runs over the rows of all batches. On a GPU, a
batch's step is one CUDA graph, and the host launches it before it reads the reports of the step before, so that the GPU
need not wait for the host. A request that turns out to be finished has then taken part in one step too many.
"""

import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from blipstream.adapters import FOLDER_NAME
from blipstream.config import CheckpointConfig, DType
from blipstream.cuda_graphs import WARM_UP_SIZES, recording_soon
from blipstream.decoding.adapters import Adapters
from blipstream.decoding.batch import Batch, Slot
from blipstream.decoding.explainer import Explainer
from blipstream.decoding.request import Request
from blipstream.decoding.strategies import StepReport
from blipstream.dtypes import resolve
from blipstream.errors import InvalidInput
from blipstream.options import DecodingOptions, ExplainOptions, OptionDefaults, RequestOptions, check_gradients
from blipstream.text.adapter import Adapter
from blipstream.text.adapter_stack import AdapterStack
from blipstream.text.decoder import Segment, TextDecoder
from blipstream.text.tokenizer import Tokenizer
from blipstream.weights import TORCH_DTYPES, load_weights

WEIGHTS_NAME = "decoder.safetensors"
MAX_ROWS = {"cpu": 64, "cuda": 512}
MAX_ADAPTERS = {"cpu": 16, "cuda": 32}  # that may run at once
MAX_ADAPTER_BYTES = {"cpu": 2**28, "cuda": 2**31}  # of those that are loaded
NOWHERE = Path(os.devnull)  # a folder that is none
# tokens that buffers may have room for; with more, batches give back what they do not use before one grows
ROOM_TO_KEEP = {"cpu": 2**12, "cuda": 2**16}  # on base 0.3 GB in f32, 2.4 GB in f16

WarmUps = Sequence[tuple[DecodingOptions, Sequence[int]]]  # options, and batch sizes in which they come up
SHORT = DecodingOptions(max_tokens=2)
WARM_UPS: WarmUps = [(SHORT, (1,))]
GRAPH_WARM_UPS: WarmUps = [
    (SHORT, WARM_UP_SIZES),
    *(
        (options, tuple(size for size in WARM_UP_SIZES if size <= 16))
        for options in (replace(SHORT, do_sample=True), replace(SHORT, num_beams=3), replace(SHORT, num_beams=5))
    ),
]


class Step(NamedTuple):
    """A step of a batch."""

    batch: Batch
    slots: list[Slot | None]  # over which it runs
    report: StepReport  # on the host, once the step has ended


class Engine:
    """Captions from image embeddings. Not thread-safe: one thread drives it, though any may make requests."""

    def __init__(
        self,
        decoder: TextDecoder,
        tokenizer: Tokenizer,
        config: CheckpointConfig,
        dtype: str,
        max_rows: int | None = None,
        fixed_shapes: bool | None = None,
        patch_multiple: int = 1,
        adapters: Path = NOWHERE,
    ) -> None:
        """`max_rows` may run at once. `fixed_shapes`: steps that can be CUDA graphs, as by default on a GPU.

        image_embeds are padded to a multiple of `patch_multiple` patches. At 384 pixels there are 577, and f16 products
        over 584 may have faster kernels.
        """
        self.config = config
        self.dtype = dtype  # what it computes in: bf16, f16 or f32
        self._decoder = decoder.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._device = decoder.head_bias.device
        has_graphs = self._device.type == "cuda"
        self.max_rows = max_rows or MAX_ROWS[self._device.type]
        self._fixed_shapes = has_graphs if fixed_shapes is None else fixed_shapes
        self._patch_multiple = patch_multiple
        num_patches = 1 + (config.vision.image_size // config.vision.patch_size) ** 2
        self.image_embeds_shape = (num_patches, config.text.encoder_hidden_size)
        self._warm_ups = GRAPH_WARM_UPS if has_graphs else WARM_UPS
        if has_graphs:
            # PyTorch hands out few streams, again and again; no graph is recorded on one of this priority
            self._copies = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]
        self._decoder.adapters = AdapterStack(config.text.num_heads, fixed_shapes=self._fixed_shapes)
        self._adapters = Adapters(
            adapters, config, self._load_adapter, MAX_ADAPTER_BYTES["cuda" if has_graphs else "cpu"]
        )
        self._explainer = Explainer(self._decoder, config)
        self._running: dict[Request, None] = {}
        self.rows = 0  # in use: the captions that grow, each beam counted; 0 if no request runs
        self._joining: list[Request] = []  # of those that run: they get their slots with the next step
        self._batches: dict[tuple[str, int, int], Batch] = {}  # by strategy, width and added words
        self._launched: list[Step] = []  # not collected yet
        self._ends: list[torch.cuda.Event] = []  # of what was launched

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = "cpu",
        dtype: DType | None = None,
        max_rows: int | None = None,
        fixed_shapes: bool | None = None,
        patch_multiple: int = 1,
        adapters: Path | None = None,
    ) -> Self:
        """From an artifact, in its own dtype unless told otherwise. Raises ArtifactError if it is broken.

        `adapters` is the folder that they are in; by default, the one beside the artifact.
        """
        # By default, f16 products may be summed in f16, in an order that depends on the batch
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        # On Hopper, cuDNN's attention comes first by default. It makes a plan for each thread and each stride, also
        # while a graph is recorded, which fails
        torch.backends.cuda.enable_cudnn_sdp(False)
        config = CheckpointConfig.load(folder)
        with torch.device("meta"):
            decoder = TextDecoder(config.text)
        load_weights(decoder, folder / WEIGHTS_NAME)
        name = resolve(dtype or config.dtype, torch.device(device).type)
        decoder = decoder.to(device, TORCH_DTYPES[name]).pack()
        tokenizer, adapters = Tokenizer(folder, config.text), adapters or folder.parent / FOLDER_NAME
        return cls(decoder, tokenizer, config, name, max_rows, fixed_shapes, patch_multiple, adapters)

    def options(
        self, tensors: Mapping[str, Any], images: int, defaults: OptionDefaults | None = None
    ) -> list[DecodingOptions]:
        """The options of each image, by `DecodingOptions.from_rows`, checked against the positions of this model."""
        return DecodingOptions.from_rows(tensors, images, self.config.text.max_positions, defaults)

    def request_options(
        self, tensors: Mapping[str, Any], images: int, defaults: OptionDefaults | None = None
    ) -> RequestOptions:
        """The same, and captions that are given, and how to explain them, by `RequestOptions.from_rows`."""
        return RequestOptions.from_rows(tensors, images, self.config.text.max_positions, defaults)

    def request(
        self,
        image_embeds: Tensor,
        options: DecodingOptions,
        request_id: str = "",
        trace_context: str = "",
        *,
        given: str | None = None,
        explain: ExplainOptions | None = None,
    ) -> Request:
        """A request for one image, image_embeds [N, E] of any float dtype on any device, of which it keeps a copy.

        With a `given` caption, that one is scored and explained, and none is generated. Raises InvalidInput if the
        request cannot be met.
        """
        text = self.config.text
        if tuple(image_embeds.shape) != self.image_embeds_shape:
            raise InvalidInput(
                f"image_embeds must have shape {list(self.image_embeds_shape)}, not {list(image_embeds.shape)}: "
                "do they come from another checkpoint's encoder?"
            )
        # on a GPU this would wait for the step under way; and a NaN harms only the request that brings it
        if image_embeds.device.type == "cpu" and not _is_finite(image_embeds):
            raise InvalidInput("image_embeds must be finite numbers, and some are not: encode the image again")
        adapter = self._adapters.get(options.adapter) if options.adapter else None
        tokenizer = (adapter and adapter.tokenizer) or self._tokenizer
        prompt_ids = tokenizer.encode(options.prompt)
        given_ids = None if given is None else [*tokenizer.encode_caption(given), text.end_token_id]
        request = Request(
            self._copy(image_embeds),
            options,
            prompt_ids,
            request_id,
            trace_context,
            given_ids,
            explain,
            adapter,
        )
        request.tokenizer = tokenizer
        vocab_size = text.vocab_size + (adapter.config.num_words if adapter else 0)
        for name, ids in (("prompt", prompt_ids), ("a given caption", given_ids or prompt_ids)):
            if max(ids) >= vocab_size:  # on a GPU it would end the process
                raise InvalidInput(
                    f"{name} must be of the model's {vocab_size:,} tokens, and its tokenizer makes others of it: "
                    "leave words out, or build the model anew with its own tokenizer"
                )
        if given_ids is None:
            options.check_fits(text.max_positions, len(prompt_ids))
        elif len(given_ids) > text.max_positions:
            raise InvalidInput(
                f"a given caption must have at most {text.max_positions - 1} tokens, not {len(given_ids) - 1}: "
                "shorten it"
            )
        if explain:
            explain.check_fits(
                text.num_layers,
                text.num_heads,
                options.num_captions,
                request.caption_length,
                is_given=given_ids is not None,
            )
        return request

    def requests(
        self,
        image_embeds: Tensor,
        options: Iterable[DecodingOptions],
        request_id: str = "",
        trace_context: str = "",
        *,
        given: Iterable[str | None] = repeat(None),
        explain: Iterable[ExplainOptions | None] = repeat(None),
    ) -> list[Request]:
        """One for each image of a call, image_embeds [B, N, E]. Raises InvalidInput if any of them cannot be met."""
        requests, rows = [], 0
        for embeds, each, caption, explained in zip(image_embeds, options, given, explain, strict=False):
            requests.append(self.request(embeds, each, request_id, trace_context, given=caption, explain=explained))
            requests[-1].rows_before = rows
            rows += each.max_rows
        check_gradients((each.explain, each.caption_length) for each in requests if each.explain)
        return requests

    @torch.inference_mode()
    def logits(self, ids: Tensor, image_embeds: Tensor, adapter: str = "") -> Tensor:
        """Logits, f32 [R, V], of the token after ids [R, T], given image_embeds [R, N, E]. Uses no request.

        If an `adapter` is named, all rows have it, and V counts the words that it adds.
        """
        rows, length = ids.shape
        weights = self._decoder.head_bias
        past = torch.zeros(rows, dtype=torch.int64, device=weights.device)
        cache = self._decoder.new_cache(rows, length)
        segment = Segment(ids.to(weights.device), past, length, image_embeds.to(weights), [(rows, 1)], *cache)
        if adapter:
            loaded = self._adapters.get(adapter)
            place = self._decoder.adapters.place(loaded, {each.adapter for each in self._running})
            segment = replace(segment, adapters=past + place, added_words=loaded.config.num_words)
        logits: Tensor = self._decoder([segment])[0]
        return logits

    def can_admit(self, request: Request) -> bool:
        """Whether there are rows for it, and a place for its adapter. A request that is alone always gets its rows."""
        if not self._running:
            return True
        if request.adapter:
            adapters = {each.adapter for each in self._running} | {request.adapter}
            if len(adapters - {None}) > MAX_ADAPTERS["cuda" if self._device.type == "cuda" else "cpu"]:
                return False
        return self.rows + request.max_rows <= self.max_rows

    def admit(self, request: Request) -> None:
        """Let a request run from the next step on."""
        request.admitted = time.time_ns()
        self._running[request] = None
        self.rows += request.max_rows
        self._joining.append(request)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Bring every row one token further, and return the requests that are known to be finished now."""
        self._join()
        batches = [batch for batch in self._batches.values() if batch.rows]
        steps = self._launch(batches) if self._fixed_shapes else self._shared_step(batches)
        finished = []
        for step in steps:
            for request in step.batch.collect(step.slots, step.report):
                if request.explain:
                    self._explainer.add(request)
                else:
                    finished.append(request)
        finished += self._explainer.step()
        for request in finished:
            self._leave(request)
        if not self._running:
            self._launched = []  # nobody is left whom it concerns
        return finished

    @torch.inference_mode()
    def cancel(self, request: Request) -> None:
        """Forget a request: if it runs, its rows are free for the next step."""
        if request in self._running:
            self._leave(request)
        if request in self._joining:
            self._joining.remove(request)
        self._explainer.remove(request)
        for batch in self._batches.values():
            batch.remove(request)

    def reset(self) -> None:
        """Forget all requests."""
        self._running.clear()
        self.rows = 0
        self._joining.clear()
        self._explainer.clear()
        self._batches.clear()
        self._launched = []

    def generate(self, requests: Iterable[Request]) -> None:
        """Run requests, and all that run already, until they have their captions."""
        waiting = deque(requests)
        try:
            while waiting or self._running:
                while waiting and self.can_admit(waiting[0]):
                    self.admit(waiting.popleft())
                self.step()
        except BaseException:
            self.reset()  # what failed must not fail those who come next
            raise

    def warm_up(self) -> None:
        """Do what would make the first requests wait."""
        image_embeds = torch.zeros(self.image_embeds_shape)
        with recording_soon():
            for options, sizes in self._warm_ups:
                for size in sizes:
                    self.generate(self.request(image_embeds, options) for _ in range(size))

    def _place(self, request: Request, adapter: Adapter) -> None:
        """Give an adapter its place in the decoder's stack. Those of the requests that run keep theirs."""
        request.adapter_place = self._decoder.adapters.place(adapter, {each.adapter for each in self._running})

    def _leave(self, request: Request) -> None:
        del self._running[request]
        self.rows -= request.max_rows

    def _join(self) -> None:
        """Give new requests a slot in their batch."""
        joining: dict[Batch, list[Request]] = {}
        for request in self._joining:
            if request.adapter:
                self._place(request, request.adapter)
            if request.given_ids:
                self._explainer.add(request)
                continue
            joining.setdefault(self._batch(request), []).append(request)
        self._joining.clear()
        room_to_keep = ROOM_TO_KEEP[self._device.type]
        for batch, requests in joining.items():
            if not batch.has_room(requests) and sum(each.room for each in self._batches.values()) > room_to_keep:
                for each in self._batches.values():
                    each.shrink()
            batch.add(requests)

    def _batch(self, request: Request) -> Batch:
        key = (request.options.strategy, request.max_rows, request.added_words)
        if key not in self._batches:
            self._batches[key] = Batch(
                self._decoder,
                *key,
                self.image_embeds_shape[0],
                fixed_shapes=self._fixed_shapes,
                patch_multiple=self._patch_multiple,
            )
        return self._batches[key]

    def _shared_step(self, batches: list[Batch]) -> list[Step]:
        """One forward over all batches."""
        segments = [batch.segments() for batch in batches]
        logits = iter(self._decoder([*chain(*segments)]) if segments else [])
        return [
            Step(batch, batch.slots, batch.advance([*islice(logits, len(own))]))
            for batch, own in zip(batches, segments, strict=True)
        ]

    def _launch(self, batches: list[Batch]) -> list[Step]:
        """Launch a forward for each batch. Returns what was launched before, once that has ended."""
        ended, self._launched = (
            self._launched,
            [Step(batch, batch.slots, self._to_host(batch.fixed_step())) for batch in batches if batch.goes_on],
        )
        for end in self._ends:
            end.synchronize()
        self._ends = [torch.cuda.current_stream(self._device).record_event()] if self._device.type == "cuda" else []
        return ended

    def _to_host(self, report: StepReport) -> StepReport:
        """A copy on the host, which is whole when the step has ended."""
        if self._device.type != "cuda":
            return StepReport(*(part.clone() for part in report))
        copies = (torch.empty_like(part, device="cpu", pin_memory=True) for part in report)
        return StepReport(*(copy.copy_(part, non_blocking=True) for copy, part in zip(copies, report, strict=True)))

    def _load_adapter(self, folder: Path) -> Adapter:
        """For Adapters, in whichever thread makes a request. What computes is one that ends, as for load_engine."""

        def load() -> Adapter:
            return Adapter.load(folder, self.config.text, self._device, TORCH_DTYPES[self.dtype])

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(load).result()

    def _copy(self, image_embeds: Tensor) -> Tensor:
        """A request's own, on the engine's device. What lies on a GPU must be written already, as Triton ensures."""
        if self._device.type == "cuda":
            # Triton takes the original back at once, and on the engine's stream the copy would wait for the step
            # under way
            with torch.cuda.stream(self._copies):
                copy = image_embeds.to(self._decoder.head_bias, copy=True)
            self._copies.synchronize()
            return copy  # the request keeps it until the step that reads it has ended, so its memory is not reused
        if image_embeds.device.type != "cpu" or image_embeds.dtype == torch.bfloat16:
            return image_embeds.to("cpu", copy=True)
        return torch.from_numpy(image_embeds.numpy().copy())


# Requests are made in another thread than the engine's. What torch computes there makes OpenMP start helpers, which
# slow the engine's thread down (see load_engine). So f16 is left to numpy: all requests over the network come in it.


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype == torch.float16:  # by the exponent: numpy's isfinite takes twenty times as long
        return bool((tensor.numpy().view(np.uint16) & 0x7FFF).max() < 0x7C00)
    return bool(tensor.isfinite().all())
