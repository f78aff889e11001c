# SPDX-License-Identifier: Apache-2.0
"""The check of the proxy's file of keys, run by the system's own sh and awk."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.documents import text_of

PAGES = text_of("docs/deploying")
KEY = "0123456789abcDEF"


def check(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "api_keys").write_bytes(text.encode())
    script = ROOT / "deploy" / "nginx" / "check-keys.sh"
    return subprocess.run(["sh", script, folder / "api_keys"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"~^{KEY}$ alice;",
        f"# clients\n\n~^{KEY}$ alice;\n  ~^_{KEY}-$\talice-2.new_one; # for now\n",
        f"# clients\r\n\r\n~^{KEY}$ alice;\r\n~^{KEY}x$ bob;\r\n",
    ],
)
def test_keys(tmp_path: Path, text: str) -> None:
    done = check(tmp_path, text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (f"{KEY}x alice;", "is not a key and its name"),
        (f"~{KEY}x alice;", "is not a key and its name"),
        (f"~^{KEY}x alice;", "is not a key and its name"),
        (f"~*^{KEY}x$ alice;", "is not a key and its name"),
        ("~^ alice;", "is not a key and its name"),
        (f"~^{KEY}+/x=$ alice;", "is not a key and its name"),
        (f"~^{KEY}|x$ alice;", "is not a key and its name"),
        (f"~^{KEY}x$ $key;", "is not a key and its name"),
        (f"~^{KEY}x$ alice", "is not a key and its name"),
        (f"~^{KEY}x$ alice; ~^ bob;", "is not a key and its name"),
        ("default alice;", "is not a key and its name"),
        ("include /etc/keys;", "is not a key and its name"),
        (f"~^{KEY[:15]}$ alice;", "has a key of only 15 characters"),
        (f"~^{KEY}$ bob;", "repeats the key of line 1"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, line: str, fault: str) -> None:
    """One sentence says which line it is, what is wrong and how to mend it. It shows no key."""
    done = check(tmp_path, f"~^{KEY}$ alice;\n# the next\n{line}\n")
    assert done.returncode == 1
    assert f"line 3 {fault}: write ~^KEY$ NAME; with 16" in done.stderr
    assert done.stderr.count("\n") == 1
    assert KEY[:15] not in done.stderr


def test_a_byte_order_mark(tmp_path: Path) -> None:
    done = check(tmp_path, f"\ufeff~^{KEY}$ alice;\n")
    assert done.returncode == 1
    assert "line 1 begins with a byte order mark" in done.stderr


def test_no_file(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "nginx" / "check-keys.sh"
    done = subprocess.run(["sh", script, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "none" in done.stderr


def test_the_documents_make_one(tmp_path: Path) -> None:
    """A file that nobody else may read."""
    (command,) = re.findall(r"^\(umask .*\)", PAGES, re.MULTILINE)
    for _ in range(2):
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert check(tmp_path, file.read_text()).returncode == 0
    assert file.read_text().count("\n") == 2


def test_git_takes_no_secrets() -> None:
    """Nothing that the documents tell to write: `git add -A` would. The folder of `blipstream proxy` ignores itself."""
    named = re.findall(
        r"--from-file=\w+=(\S+)|--(?:cert|key)=(\S+)|>> (\w+)|install -o 1000 -m 400 (\S+) ([\w.-]+)", PAGES
    )
    files = {name for names in named for name in names if name and not name.startswith("/dev/")}
    assert {"keys", "api-keys", "admin-key", "tls-key.pem"} <= files
    files |= {
        "admin.key",
        *re.findall(r"(?<![\w/-])(?:\./)?([\w-]*(?:key|-ca)\.(?:pem|txt))\b", text_of("docs", "README.md")),
    }
    assert {"key.pem", "key.txt", "clients-ca.pem"} <= files
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {name for name in files if f"/{name}" not in ignored and not name.startswith("captions-proxy/")} == set()
