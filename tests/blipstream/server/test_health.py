# SPDX-License-Identifier: Apache-2.0
"""What the pages of the supervisor's health say."""

from collections import Counter

from blipstream.server.health import BLIND_SECONDS, DEAD_SECONDS, Health


def test_a_problem_goes_before_captions() -> None:
    health = Health(ready=True)
    health.note_caption()
    health.problem = "no new connection was answered for 3 s"
    assert health.page("/healthz")[0] == 503
    assert health.problem in health.page("/healthz")[2]
    health.note_caption()
    assert health.page("/healthz")[0] == 503
    health.problem = ""
    assert health.page("/healthz")[0] == 200


def test_captioning_means_ready_and_captions() -> None:
    health = Health()
    assert health.page("/healthz")[0] == 503
    health.note_caption()
    assert health.page("/healthz")[0] == 503
    health.ready = True
    assert health.page("/healthz") == (200, "application/json", '{"ok": true, "why": "it answers", "restarts": 0}\n')
    assert health.page("/elsewhere")[0] == 404


def test_a_supervisor_that_stands_still() -> None:
    """It may be busy for as long as it announced. After that it is soon blind, and much later dead."""
    health = Health(ready=True)
    health.note_caption()

    def answers() -> list[int]:
        return [health.page(path)[0] for path in ("/livez", "/readyz", "/healthz")]

    health.beat(300)
    assert answers() == [200, 200, 200]
    health.beat(-BLIND_SECONDS)
    assert answers() == [200, 200, 503]
    assert "the supervisor has stood still for 10 seconds: restart it" in health.page("/healthz")[2]
    assert "blipstream_supervisor_captioning 0" in health.metrics()
    health.beat(-DEAD_SECONDS)
    assert answers() == [503, 200, 503]
    health.beat()
    assert answers() == [200, 200, 200]


def test_figures() -> None:
    health = Health(
        ready=True, captioning=True, last_caption=12.5, failing_route="caption_stream", restarts=Counter(hung=2)
    )
    lines = health.metrics().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "blipstream_supervisor_captioning 1",
        'blipstream_supervisor_failing{model="caption"} 0',
        'blipstream_supervisor_failing{model="caption_stream"} 1',
        'blipstream_supervisor_failing{model="match"} 0',
        "blipstream_supervisor_last_caption_timestamp_seconds 12.500",
        'blipstream_supervisor_restarts_total{reason="hung"} 2',
    ]
