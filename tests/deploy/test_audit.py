# SPDX-License-Identifier: Apache-2.0
"""No answer is no good news: how what pip-audit prints is judged."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import audit
from audit import judge

LOCK = Path("some.lock")
SOUND: dict[str, Any] = {"name": "sound", "version": "1.0", "vulns": []}
ILL: dict[str, Any] = {
    "name": "ill",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1", "3.0"], "aliases": [], "description": ""}],
}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI and could not be audited: unknown (1.0)"}


def test_a_vulnerability_is_a_line() -> None:
    assert judge(LOCK, [SOUND]) == []
    assert judge(LOCK, [SOUND, ILL]) == ["ill 2.0: PYSEC-1, fixed in 2.1, 3.0"]


@pytest.mark.parametrize("packages", [[], [UNKNOWN], [SOUND, UNKNOWN], [ILL, UNKNOWN]])
def test_no_answer_is_not_good_news(packages: list[dict[str, Any]]) -> None:
    with pytest.raises(click.ClickException, match=r"NOT RUN for some\.lock") as caught:
        judge(LOCK, packages)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("options", "status"), [([], 3), (["--if-possible"], 0)])
def test_whether_no_answer_is_a_failure(
    options: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "audit", lambda lock: [UNKNOWN])  # noqa: ARG005 - as without a network
    lock = tmp_path / "some.lock"
    lock.touch()
    result = CliRunner().invoke(audit.main, [*options, str(lock)])
    assert result.exit_code == status
    assert f"NOT RUN for {lock}" in result.stderr
