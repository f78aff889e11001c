# SPDX-License-Identifier: Apache-2.0
"""Look for known vulnerabilities of the locked packages: `make audit`.

Exit status 0: none is known; 1: some are; 3: nobody could be asked. pip-audit itself takes the last for good news.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

PIP_AUDIT = Path(sys.prefix, "audit", "bin", "pip-audit")


class NotRun(click.ClickException):
    """Nobody could be asked about a lock file."""

    exit_code = 3

    def __init__(self, lock: Path, reason: str) -> None:
        super().__init__(f"NOT RUN for {lock}: {reason}")


def audit(lock: Path) -> list[dict[str, Any]]:
    """pip-audit's findings, one for each package. Raises NotRun if it could not ask."""
    arguments = ("--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json", "--requirement", lock)
    done = subprocess.run([PIP_AUDIT, *arguments], capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError):
        raise NotRun(lock, (done.stderr.strip().splitlines() or ["no answer"])[-1]) from None
    return packages


def judge(lock: Path, packages: list[dict[str, Any]]) -> list[str]:
    """A line for each known vulnerability. Raises NotRun if a package could not be judged."""
    skipped = [package for package in packages if "skip_reason" in package]
    if skipped or not packages:
        raise NotRun(lock, skipped[0]["skip_reason"] if skipped else "no package is named in it")
    return [
        f"{package['name']} {package['version']}: {each['id']}, fixed in {', '.join(each['fix_versions']) or 'none'}"
        for package in packages
        for each in package["vulns"]
    ]


@click.command()
@click.option("--if-possible", is_flag=True, help="Do not fail if nobody could be asked.")
@click.argument("locks", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(locks: tuple[Path, ...], if_possible: bool) -> None:
    """Ask the Python Package Index about every package in LOCKS."""
    try:
        lines = [line for lock in locks for line in judge(lock, audit(lock))]
    except NotRun as error:
        if not if_possible:
            raise
        error.show()
        return
    click.echo("\n".join(lines) or f"no known vulnerability in {len(locks)} lock files")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
