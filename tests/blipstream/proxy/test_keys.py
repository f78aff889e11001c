# SPDX-License-Identifier: Apache-2.0
"""The proxy's file of keys, also where somebody has written in it by hand."""

from pathlib import Path

import pytest

from blipstream.errors import ServerError
from blipstream.proxy import keys

BY_HAND = "# our clients\n\n~^0123456789abcdef$ alice; # for now\n  ~^fedcba9876543210$\tbob-2.new;"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(BY_HAND)
    return file


def test_a_first_key(tmp_path: Path) -> None:
    """A long one, which nobody else may read, in a file that passes the check."""
    keys.add(tmp_path / "keys", "alice")
    assert len(keys.key_of(tmp_path / "keys", "alice")) == 64
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    keys.check(tmp_path / "keys")
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_what_is_there_stays(file: Path) -> None:
    keys.add(file, "carol")
    assert file.read_text().startswith(f"{BY_HAND}\n~^")
    assert keys.clients(file) == {
        "alice": "0123456789abcdef",
        "bob-2.new": "fedcba9876543210",
        "carol": keys.key_of(file, "carol"),
    }
    assert file.stat().st_mode & 0o777 == 0o600
    keys.check(file)
    keys.revoke(file, "carol")
    assert file.read_text() == f"{BY_HAND}\n"


def test_revoking(file: Path) -> None:
    keys.revoke(file, "alice")
    assert file.read_text() == "# our clients\n\n  ~^fedcba9876543210$\tbob-2.new;"


@pytest.mark.parametrize("name", ["", "two words", "a;", "$key", "a\n", "ü"])
def test_names_that_cannot_be(file: Path, name: str) -> None:
    with pytest.raises(ServerError, match="a client's name is letters, digits"):
        keys.add(file, name)
    assert file.read_text() == BY_HAND


def test_a_name_that_is_too_long(file: Path) -> None:
    """nginx would refuse to read the file from then on."""
    with pytest.raises(ServerError, match="has at most 64 characters, and this one has 5,000: choose another"):
        keys.add(file, "x" * 5000)
    assert file.read_text() == BY_HAND
    keys.add(file, "x" * 64)


def test_a_file_with_a_wrong_line_stays_as_it_is(file: Path) -> None:
    file.write_text(f"{BY_HAND}\ngarbage\n")
    for function, client in ((keys.add, "carol"), (keys.revoke, "alice")):
        with pytest.raises(ServerError, match="line 5 is not a key and its name"):
            function(file, client)
    assert file.read_text() == f"{BY_HAND}\ngarbage\n"


def test_a_name_has_one_key(file: Path) -> None:
    with pytest.raises(ServerError, match="alice has a key: revoke it first"):
        keys.add(file, "alice")


def test_nobody_of_this_name(file: Path) -> None:
    for function in (keys.key_of, keys.revoke):
        with pytest.raises(ServerError, match="no key for 'carol': it has keys for alice, bob-2"):
            function(file, "carol")


def test_a_wrong_line(file: Path) -> None:
    file.write_text("~^0123456789abcdef alice;\n")
    with pytest.raises(ServerError, match="line 1 is not a key and its name: write"):
        keys.check(file)
