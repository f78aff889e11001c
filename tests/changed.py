# SPDX-License-Identifier: Apache-2.0
"""Print the tests that concern a change: .venv/bin/pytest $(.venv/bin/python tests/changed.py)

The change is what differs from the branch main, or from the commit that is given, with files that Git does not know
yet. A test concerns a changed file if it mirrors its place, imports it or names it. All tests are still to pass.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("tests/docs", "tests/test_readme.py")
PACKAGE_OR_VERSION = re.compile(r"blipstream_\w+|\d+")  # folders that the tests' folders leave out
IMPORT_ROOTS = (
    ("build", "demo"),
    ("build",),
    ("client",),
    ("deploy",),
    ("loadtest",),
)  # from which modules are imported


def changed_files(base: str) -> list[str]:
    """What differs from where this branch left `base`."""
    (fork,) = _git("merge-base", base, "HEAD")
    return _git("diff", "--name-only", fork) + _git("ls-files", "--others", "--exclude-standard")


def concerned(path: str, tests: dict[str, str]) -> set[str]:
    """Test files and folders that concern a file. `tests` has the text of every test file by its path."""
    file = PurePosixPath(path)
    if path in tests or file.suffix == ".md":
        return {path} if path in tests else set(PAGES)
    found = {name for name, text in tests.items() if re.search(_mention(file), text)}
    if path.startswith("tests/"):
        return found
    place = PurePosixPath("tests", *(part for part in file.parent.parts if not PACKAGE_OR_VERSION.fullmatch(part)))
    mirror = str(place / f"test_{file.stem.lstrip('_')}.py")
    if mirror in tests:
        return found | {mirror}
    if not found or len(place.parts) > 2:  # a room such as tests/blipstream/images
        folders = (str(each) for each in (place, *place.parents))
        found.add(next(each for each in folders if any(_within(name, each) for name in tests) or each == "tests"))
    return found - {"tests"}


def _within(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def _mention(file: PurePosixPath) -> str:
    """What the text of a test has that imports or names the file."""
    if file.suffix != ".py" or file.parts[0] == "examples":
        namesakes = _git("ls-files", f"*/{file.name}")
        return rf"(?<![\w.-]){re.escape(file.name if len(namesakes) < 2 else f'{file.parent.name}/{file.name}')}\b"
    parts = file.with_suffix("").parts
    root = next((root for root in IMPORT_ROOTS if parts[: len(root)] == root), ())
    parts = parts[len(root) :]
    *package, name = parts[:-1] if parts[-1] == "__init__" else parts
    module = re.escape(".".join([*package, name]))
    from_package = rf"|from {re.escape('.'.join(package))} import [^\n]*\b{name}\b" if package else ""
    return rf"(?m)^\s*(from {module} import|import {module}\b{from_package})"


def _git(*command: str) -> list[str]:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else sys.exit(done.stderr.strip())


def main(paths: Iterable[str]) -> None:
    """Print them in one line."""
    tests = {str(each.relative_to(ROOT)): each.read_text() for each in ROOT.glob("tests/**/test_*.py")}
    found = set().union(*(concerned(path, tests) for path in paths))
    print(*sorted(each for each in found if not any(_within(each, other) for other in found)))


if __name__ == "__main__":
    main(changed_files(*(sys.argv[1:] or ["main"])))
