# SPDX-License-Identifier: Apache-2.0
"""What stop signals do to a command, each tried in a process of its own."""

import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run(code: str) -> subprocess.CompletedProcess[str]:
    code = f"import os, signal\nfrom blipstream import signals\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("status", "output"), [(0, ("stopped\n", "")), (130, ("", "stopped\n"))])
def test_the_end_at_once(number: signal.Signals, status: int, output: tuple[str, str]) -> None:
    done = run(f"signals.exit_on_signals({status})\nos.kill(os.getpid(), {number:d})\nprint('too late')")
    assert (done.returncode, (done.stdout, done.stderr)) == (status, output)


def test_one_interruption() -> None:
    """Further signals interrupt no cleaning up, and a library that swallows the first one hides nothing."""
    done = run("""
signals.exit_on_signals()
signals.interrupt_on_signals()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
try:
    signals.check()
except KeyboardInterrupt:
    print("checked")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "checked\n", "")


def test_handlers_are_put_back() -> None:
    done = run("""
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
with signals.handled():
    assert signal.getsignal(signal.SIGINT) not in before
print((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before)
""")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_what_is_ignored_stays_so() -> None:
    """`nohup` ignores SIGHUP, and a script's shell SIGINT for what it starts in the background."""
    done = run("""
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signals.exit_on_signals()
signals.interrupt_on_signals()
for number in signals.STOP_SIGNALS:
    print(signal.getsignal(number) == signal.SIG_IGN, signal.getsignal(number) == signals._interrupt)
""")
    assert (done.stdout, done.stderr) == ("True False\nFalse True\nTrue False\n", "")


@pytest.mark.parametrize("dropped", ["before", "after"])
def test_models_of_openvinos_may_have_been_dropped(dropped: str) -> None:
    """Which leaves an alternate stack that is gone."""
    lose = "ctypes.CDLL(None).sigaltstack(ctypes.byref(signals._Stack(4096, 0, 65536)), None)"
    handle, use = "signals.exit_on_signals()", "signals.use_ordinary_stack()"
    steps = {"before": [lose, handle], "after": [handle, lose, use]}[dropped]
    code = "\n".join(["import ctypes", *steps, "signal.raise_signal(15)"])
    assert run(code).returncode == 130
