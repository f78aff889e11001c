# SPDX-License-Identifier: Apache-2.0
"""What counts as a fault."""

from collections.abc import Callable, Iterable

import pytest

from blipstream.server.diagnosis import HANG_SECONDS, LIVELOCK_SECONDS, Diagnosis, Fault, Sample
from blipstream.server.routes import STREAM

SAMPLE_SECONDS = 0.5
QUIET = {"preprocess": 7, "encoder": 7, "decoder": 7, "caption": 7}


def judge(samples: Iterable[Sample], seconds: float = SAMPLE_SECONDS) -> Fault | None:
    """The first fault in samples that were taken so many seconds apart while a caption was due."""
    diagnosis = Diagnosis()
    diagnosis.add(Sample(QUIET), seconds)
    diagnosis.caption_due = True
    return next(filter(None, (diagnosis.add(sample, seconds) for sample in samples)), None)


def samples(seconds: float, sample: Callable[[int], Sample]) -> list[Sample]:
    return [sample(number) for number in range(int(seconds / SAMPLE_SECONDS))]


def test_a_server_that_captions_is_well() -> None:
    assert not judge(samples(60, lambda n: Sample(QUIET | {"caption": 8 + n}, refusal="one of many")))


def test_streams_are_captions_too() -> None:
    assert not judge(samples(60, lambda n: Sample(QUIET | {"caption_stream": 8 + n})))


def test_a_server_that_is_asked_for_nothing_is_well() -> None:
    diagnosis = Diagnosis()
    assert not any(diagnosis.add(Sample(QUIET), SAMPLE_SECONDS) for _ in range(1000))


def test_an_idle_server_that_answers_no_canary_hangs() -> None:
    fault = judge(samples(HANG_SECONDS, lambda _: Sample(QUIET)))
    assert fault == Fault("hung", "no caption came out for 3 seconds")


def test_a_server_that_says_nothing_hangs() -> None:
    assert judge(samples(HANG_SECONDS, lambda _: Sample({}, frozenset())))


def test_slow_work_is_no_hang() -> None:
    """A batch of 64 in a large encoder on a small processor takes minutes, and nothing is finished meanwhile."""
    assert not judge(samples(300, lambda _: Sample(QUIET, frozenset({"encoder"}))))


def test_a_starved_machine_is_no_hang() -> None:
    """Even if only some samples find the processes that wait for a processor."""
    assert not judge(samples(60, lambda n: Sample(QUIET, frozenset({"decoder"} if n % 3 == 0 else ()))))


def test_a_hung_stage_is_found_while_those_before_it_work_for_nothing() -> None:
    def sample(number: int) -> Sample:
        done = 8 + number
        return Sample(QUIET | {"preprocess": done, "encoder": done}, frozenset({"preprocess", "encoder"}))

    assert judge(samples(HANG_SECONDS + SAMPLE_SECONDS, sample)) == Fault("hung", "no caption came out for 3 seconds")


def test_each_stage_may_be_slow_once() -> None:
    """Such as when a batch of 64 comes to an idle server: no caption comes out before each stage is done with it."""
    stages = [("preprocess", 5), ("encoder", 60), ("decoder", 20)]
    counts, all_samples = QUIET, []
    for stage, seconds in stages:
        all_samples += [Sample(counts, frozenset({stage}))] * int(seconds / SAMPLE_SECONDS)
        counts = counts | {stage: 8}
    assert not judge(all_samples)
    assert judge([*all_samples, *samples(HANG_SECONDS + SAMPLE_SECONDS, lambda _: Sample(counts))])


def test_one_route_may_hang_while_the_other_captions() -> None:
    def captions(number: int) -> dict[str, int]:
        return {model: count + number for model, count in QUIET.items()} | {"caption_stream": 3}

    def judge_streams(sample: Callable[[int], Sample]) -> Fault | None:
        diagnosis = Diagnosis.since(captions(0), STREAM, caption_due=True)
        found = (diagnosis.add(each, SAMPLE_SECONDS) for each in samples(2 * HANG_SECONDS, sample))
        return next(filter(None, found), None)

    fault = judge_streams(lambda n: Sample(captions(n), frozenset({"encoder", "decoder"})))
    assert fault == Fault("hung", "no stream came out, though captions did, for 4 seconds")
    assert not judge_streams(lambda n: Sample(captions(n), frozenset({"caption_stream"})))
    assert not judge_streams(lambda n: Sample(captions(n) | {"caption_stream": 3 + n}))


def test_silence_is_counted_for_each_route() -> None:
    diagnosis = Diagnosis.since(QUIET)
    for number in range(20):
        diagnosis.add(Sample(QUIET | {"caption": 8 + number}), SAMPLE_SECONDS)
    assert (diagnosis.silence, diagnosis.longest_silence) == (0, 0)
    for number in range(20):
        diagnosis.add(Sample(QUIET | {"caption": 40 + number, "caption_stream": 0}), SAMPLE_SECONDS)
    assert diagnosis.silence == 0
    assert diagnosis.longest_silence == pytest.approx(20 * SAMPLE_SECONDS, abs=SAMPLE_SECONDS)


def test_work_without_end_is_a_hang_at_last() -> None:
    working = samples(LIVELOCK_SECONDS, lambda _: Sample(QUIET, frozenset({"decoder"})))
    assert not judge(working[:-1])
    assert judge(working)


def test_a_decoder_that_makes_steps_is_alive() -> None:
    """Such as at a request of 64 images and ten beams, which others wait for. Once the steps end, it hangs."""

    def steps(number: int, decoder: str = "decoder") -> Sample:
        done = QUIET | {"preprocess": 8 + number, "encoder": 8 + number, "decoder": 8}
        return Sample(done, frozenset({"decoder"}), progress={decoder: 100 + number // 4})

    alive = samples(300, steps)
    assert not judge(alive)
    hung = samples(2 * HANG_SECONDS, lambda _: alive[-1])
    fault = judge([*alive, *hung])
    assert fault is not None
    assert fault.reason == "hung"
    assert judge(samples(2 * LIVELOCK_SECONDS, steps))  # no work is an excuse for ever
    streams = Diagnosis.since(QUIET, STREAM, caption_due=True)
    faults = [streams.add(sample, SAMPLE_SECONDS) for sample in samples(2 * HANG_SECONDS, steps)]
    assert any(faults)  # the other route's steps are no excuse


def test_a_decoder_that_refuses_is_alive() -> None:
    """Such as when all requests ask for too many tokens: queues before it are long, and no caption comes out."""

    def refuses(number: int) -> Sample:
        done = QUIET | {"preprocess": 8 + number, "encoder": 8 + number}
        return Sample(done, progress={"decoder": 100 + number // 4}, pending={"encoder": 8, "decoder": 2})

    alive = samples(60, refuses)
    assert not judge(alive)
    assert judge([*alive, *samples(2 * HANG_SECONDS, lambda _: alive[-1])])


def flooded(number: int, pending: dict[str, int], working: frozenset[str] = frozenset()) -> Sample:
    """A sample of a server whose encoder alone gets requests, and finishes some every two seconds."""
    waits = {"preprocess": 0, "encoder": 0, "decoder": 0, "caption_stream": 0}
    return Sample(QUIET | {"encoder": 8 + number // 4}, working, progress={"decoder": 9}, pending=waits | pending)


def test_a_stage_that_goes_on_is_alive_while_the_decoders_have_nothing_to_do() -> None:
    """Captions wait for that stage. Once it stands still, or a decoder does, the server hangs."""
    alive = samples(60, lambda n: flooded(n, {"encoder": 2000}))
    assert not judge(alive)
    assert judge([*alive, *samples(2 * HANG_SECONDS, lambda _: alive[-1])])
    assert judge(
        samples(2 * LIVELOCK_SECONDS, lambda n: flooded(n, {"encoder": 2000}))
    )  # no work is an excuse for ever
    slow = [*alive, *samples(60, lambda _: flooded(119, {"encoder": 2000}, frozenset({"encoder"})))]
    assert not judge(slow)  # a large batch takes long
    assert judge([*slow, *samples(2 * HANG_SECONDS, lambda _: alive[-1])])
    for decoder in ("decoder", "caption_stream"):
        assert not judge(flooded(n, {"encoder": 2000, decoder: int(n % 4 == 0)}) for n in range(120))
        hung = [flooded(n, {"encoder": 2000, decoder: 1}) for n in range(20)]
        assert judge(hung) == Fault("hung", "no caption came out for 4 seconds")


def test_a_hung_encoder_is_found_while_the_decoders_have_nothing_to_do() -> None:
    def sample(number: int) -> Sample:
        working = frozenset({"preprocess"})
        return Sample(QUIET | {"preprocess": 8 + number}, working, pending={"encoder": 3, "decoder": 0})

    assert judge(samples(2 * HANG_SECONDS, sample)) == Fault("hung", "no caption came out for 4 seconds")


def test_stages_that_serve_the_other_route_are_no_excuse() -> None:
    streams = Diagnosis.since(QUIET, STREAM, caption_due=True)
    assert any(streams.add(flooded(n, {}), SAMPLE_SECONDS) for n in range(20))


def test_one_route_may_wait_in_the_queue_that_it_shares() -> None:
    """As when all who streamed have hung up, and the canary waits behind captions that come out slowly."""

    def judge_streams(*pending: dict[str, int]) -> list[int]:
        """The samples, of half a second each, that find a fault."""
        streams = Diagnosis.since(QUIET, STREAM, caption_due=True)
        faults = [
            streams.add(Sample(QUIET | {"caption": 8 + number}, pending=each), SAMPLE_SECONDS)
            for number, each in enumerate(pending)
        ]
        return [number for number, fault in enumerate(faults) if fault]

    flooded = {"preprocess": 200, "decoder": 60, "caption_stream": 0}
    assert not judge_streams(*[flooded, flooded | {"preprocess": 0}] * 60)
    assert judge_streams(*[flooded] * 60, *[flooded | {"preprocess": 0}] * 9)[0] == 65
    assert judge_streams(*[flooded | {"caption_stream": 1}] * 9)  # it has arrived there


def test_a_server_that_refuses_every_caption_fails_though_it_works() -> None:
    fault = judge(samples(HANG_SECONDS, lambda _: Sample(QUIET, frozenset({"decoder"}), refusal="no words")))
    assert fault == Fault("failing", "no caption came out for 3 seconds: no words")


def test_a_stopped_process_is_found_at_once_unless_it_goes_on() -> None:
    stopped, running = Sample(QUIET, halted=frozenset({"encoder"})), Sample(QUIET)
    assert not judge([stopped, running, stopped])
    assert judge([stopped, stopped]) == Fault("stopped", "the process of encoder was stopped by a signal")


def test_time_in_which_the_supervisor_was_held_up_does_not_count() -> None:
    """Such as on a machine that was suspended: the server was suspended, too."""
    assert not judge([Sample(QUIET)] * 2, seconds=3600)
