# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from contextlib import suppress
from itertools import pairwise

import pytest

from blipstream_client import (
    BlipstreamError,
    InvalidRequest,
    InvalidURL,
    ModelNotReady,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
)
from blipstream_client._endpoints import LONGEST_REST, Address, RoundRobin, parse_urls


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("grpc://localhost:9001", "grpc", "localhost", 9001, ""),
        ("grpc://captions", "grpc", "captions", 8001, ""),
        ("http://captions/", "http", "captions", 8000, ""),
        ("https://example.com/blip/", "https", "example.com", 443, "/blip"),
        ("grpcs://[::1]", "grpcs", "::1", 443, ""),
    ],
)
def test_one_address(url: str, scheme: str, host: str, port: int, path: str) -> None:
    assert parse_urls(url) == [Address(url, scheme, host, port, path)]


@pytest.mark.parametrize(
    ("url", "netlocs"),
    [
        ("grpc://a:8001,b:9001", ["a:8001", "b:9001"]),
        ("grpc://a, b,[::1]", ["a:8001", "b:8001", "[::1]:8001"]),
        ("https://a,b:444/blip/", ["a:443", "b:444"]),
    ],
)
def test_several_addresses(url: str, netlocs: list[str]) -> None:
    addresses = parse_urls(url)
    assert [address.netloc for address in addresses] == netlocs
    assert len({(address.scheme, address.path) for address in addresses}) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8001",
        "ftp://localhost",
        "grpc://",
        "grpc://::1:8001",
        "grpc://a/b",
        "grpc://a,",
    ],
)
def test_wrong_addresses_are_told_what_was_expected(url: str) -> None:
    with pytest.raises(InvalidURL, match="such as grpc://localhost:8001 or http://localhost:8000"):
        parse_urls(url)


@pytest.mark.parametrize(
    "url", ["grpc://a,http://b", "http://a:1,grpc://b:2", "grpc://a:1,http://b:2", "grpc://a, grpc://b"]
)
def test_several_addresses_have_one_scheme_once(url: str) -> None:
    with pytest.raises(InvalidURL, match=f"one scheme, once, .*such as grpc://a:8001,b:8001, got '{url}'"):
        parse_urls(url)


@pytest.mark.parametrize("url", [" grpc://a:9001,b:9001", "grpc://a:9001,b:9001 ", "grpc://a:9001,b:9001\n"])
def test_blanks_around_addresses_do_not_count(url: str) -> None:
    assert parse_urls(url) == parse_urls("grpc://a:9001,b:9001")


@pytest.mark.parametrize("port", ["0", "-1", "65536", "70000", "9" * 5000, "text", "²"], ids=lambda port: port[:8])
@pytest.mark.parametrize("url", ["http://a:{}", "http://a:{}/path", "grpc://[::1]:{}", "grpc://a,b:{}"])
def test_a_wrong_port_is_named(url: str, port: str) -> None:
    with pytest.raises(InvalidURL, match="Expected a port from 1 to 65535 in the address") as caught:
        parse_urls(url.format(port))
    assert f"got {port[:10]}" in str(caught.value)


def test_a_password_is_not_taken_for_a_port() -> None:
    with pytest.raises(InvalidURL) as caught:
        parse_urls("http://name:pass/word@host")
    assert "pass" not in str(caught.value)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take(endpoints: RoundRobin, error: BlipstreamError | None = None) -> int:
    """The endpoint whose turn it is. It answers, or fails with the error."""
    if error is None:
        with endpoints.turn() as index:
            return index
    with pytest.raises(type(error)), endpoints.turn() as index:
        raise error
    return index


def test_each_in_turn(clock: Clock) -> None:
    endpoints = RoundRobin(3, clock)
    assert [take(endpoints) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("error", [ServerUnreachable(), RequestTimeout()])
def test_an_endpoint_that_failed_rests_and_is_then_tried_by_one_request(clock: Clock, error: BlipstreamError) -> None:
    endpoints = RoundRobin(2, clock)
    assert take(endpoints, error) == 0
    assert [take(endpoints) for _ in range(4)] == [1, 1, 1, 1]
    clock.now += 1.0
    with endpoints.turn() as index:
        assert index == 0
        assert [take(endpoints) for _ in range(3)] == [1, 1, 1]  # while it is being tried
    assert Counter(take(endpoints) for _ in range(10)) == {0: 5, 1: 5}


def test_the_longer_it_fails_the_longer_it_rests(clock: Clock) -> None:
    endpoints = RoundRobin(2, clock)
    asked_at = []
    for _ in range(1000):
        with suppress(ServerUnreachable), endpoints.turn() as index:
            if index == 0:
                asked_at.append(clock.now)
                raise ServerUnreachable
        clock.now += 0.25
    rests = [later - earlier for earlier, later in pairwise(asked_at)]
    assert rests[:4] == [1, 2, 4, 8]
    assert rests[-1] == LONGEST_REST


def test_a_failure_of_many_requests_counts_once(clock: Clock) -> None:
    endpoints = RoundRobin(2, clock)
    turns = [endpoints.turn() for _ in range(20)]
    taken = [turn.__enter__() for turn in turns]
    for index, turn in zip(taken, turns, strict=True):
        if index == 0:
            error = ServerUnreachable()
            turn.__exit__(ServerUnreachable, error, None)
        else:
            turn.__exit__(None, None, None)
    assert [take(endpoints) for _ in range(3)] == [1, 1, 1]
    clock.now += 1.0
    assert 0 in [take(endpoints) for _ in range(2)]


def test_errors_of_the_request_do_not_count(clock: Clock) -> None:
    endpoints = RoundRobin(2, clock)
    for error in (InvalidRequest(), ServerOverloaded(), ModelNotReady(), RequestCancelled()):
        take(endpoints, error)
    assert [take(endpoints) for _ in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", [ModelNotReady, ServerError])
def test_an_endpoint_that_is_not_ready_rests(clock: Clock, kind: type[BlipstreamError]) -> None:
    endpoints, error = RoundRobin(1, clock), kind()
    take(endpoints, error)
    assert endpoints.is_any_rested()
    error.transient = True
    take(endpoints, error)
    assert not endpoints.is_any_rested()


def test_if_all_fail_all_are_asked(clock: Clock) -> None:
    endpoints = RoundRobin(2, clock)
    assert endpoints.is_any_rested()
    indices = [take(endpoints, ServerUnreachable()) for _ in range(6)]
    assert set(indices) == {0, 1}
    assert not endpoints.is_any_rested()
    clock.now += LONGEST_REST
    assert endpoints.is_any_rested()
