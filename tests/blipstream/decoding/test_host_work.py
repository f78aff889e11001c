# SPDX-License-Identifier: Apache-2.0
"""What the host does for a step on a GPU: it neither loops over rows nor waits for the GPU."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blipstream.decoding import Engine, Request
from blipstream.decoding.engine import ROOM_TO_KEEP
from blipstream.decoding.scheduler import Scheduler
from blipstream.decoding.strategies import StepReport
from blipstream.options import DecodingOptions
from host_work import tiny_engine


def calls_of_a_step(rows: int) -> int:
    """How many functions are called, Python's and others, in a step in which no request joins or leaves."""
    engine = tiny_engine(rows)
    embeds = torch.zeros(engine.image_embeds_shape)
    for _ in range(rows):
        engine.admit(engine.request(embeds, DecodingOptions(min_tokens=9, max_tokens=9)))
    for _ in range(3):
        engine.step()
    count = 0

    def count_call(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        engine.step()
    finally:
        sys.setprofile(None)
    assert engine.rows == rows
    return count


def test_a_step_loops_over_no_rows() -> None:
    assert calls_of_a_step(4) == calls_of_a_step(128)


def test_texts_are_made_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a step is not late because of them."""
    engine = tiny_engine(8)
    stepping, writing = set(), set()
    step, text = engine.step, Request.text

    def watched_step() -> list[Request]:
        stepping.add(threading.get_ident())
        return step()

    def watched_text(request: Request, ids: list[int]) -> str:
        writing.add(threading.get_ident())
        return text(request, ids)

    monkeypatch.setattr(engine, "step", watched_step)
    monkeypatch.setattr(Request, "text", watched_text)
    scheduler = Scheduler(engine)
    for streams in (False, True):
        request = engine.request(torch.zeros(engine.image_embeds_shape), DecodingOptions())
        scheduler.submit(request, lambda _: None, streams=streams)
    scheduler.close()
    assert len(stepping) == len(writing) == 1
    assert not stepping & writing


class _Transfers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts copies to the device, and fails where the host would wait for one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy):
            if output.device != args[0].device:
                names = [each.name for each in func._schema.arguments]
                assert (dict(zip(names, args, strict=False)) | kwargs).get("non_blocking"), "a copy to wait for"
                self.counts["copies"] += 1
        else:
            tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor) and each.dim()]
            assert len({each.device for each in tensors}) < 2, f"{func} of tensors of two devices"
        return output


class _Indices(TorchFunctionMode):
    """Fails where PyTorch would make a tensor of Python's numbers, and wait until it is on the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            assert torch.device(kwargs.get("device") or "cpu").type == "cpu", f"{func} on a device"
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type != "cpu":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(each, list) for each in index), "an index by a list"
        return func(*args, **kwargs)


@contextmanager
def no_waiting() -> Iterator[_Transfers]:
    with torch.inference_mode(), _Indices(), _Transfers() as transfers:
        yield transfers


@pytest.mark.parametrize(
    "options",
    [
        DecodingOptions(max_tokens=40),
        DecodingOptions(prompt="w5 w6 w7", repetition_penalty=1.5, no_repeat_ngram_size=2, min_tokens=2),
        DecodingOptions(num_beams=3, early_stopping=True),
        DecodingOptions(do_sample=True, num_captions=2, top_k=5, top_p=0.9),
    ],
)
def test_the_host_never_waits_for_the_device(options: DecodingOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor on the device "meta" has no numbers, so PyTorch itself fails where one is read. Requests join and leave.

    A GPU has a step under way all the time. Whoever waits for a copy waits for that step.
    """
    tiny = tiny_engine(64)
    engine = Engine(tiny._decoder.to("meta"), tiny._tokenizer, tiny.config, "f32", 64, fixed_shapes=True)
    ended: set[int] = set()

    def report(step: StepReport) -> StepReport:
        """As the device would give it, for requests of which some end."""
        parts = [torch.zeros(part.shape, dtype=part.dtype) for part in step]
        parts[0][[slot for slot in ended if slot < len(parts[0])]] = True
        parts[1][:] = 1
        return StepReport(*parts)

    monkeypatch.setattr(engine, "_to_host", report)
    monkeypatch.setitem(ROOM_TO_KEEP, "meta", 2**16)
    embeds = torch.zeros(engine.image_embeds_shape, device="meta")
    prompt_ids = tiny._tokenizer.encode(options.prompt)
    engine._batch(Request(embeds, options, prompt_ids))  # a new batch may wait, since that is rare
    with no_waiting() as transfers:
        for count, leaving in ((5, set()), (3, {0, 2}), (0, {1, 3, 4}), (1, {0})):
            for _ in range(count):
                engine.admit(Request(embeds, options, prompt_ids))
            ended = leaving
            engine.step()
    assert transfers.counts["copies"] > 5
    assert engine.rows == options.max_rows * (5 + 3 + 1 - 5)  # what the last step says is not read yet
