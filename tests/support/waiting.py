# SPDX-License-Identifier: Apache-2.0
"""Wait for another thread or process."""

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], bool], seconds: float = 60, otherwise: Callable[[], object] = lambda: "waited in vain"
) -> None:
    """Return once the condition is true. If that takes too long, fail with what `otherwise` returns."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.01)
