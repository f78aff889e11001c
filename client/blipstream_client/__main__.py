# SPDX-License-Identifier: Apache-2.0
"""Where the command line begins, before anything that takes long to import."""

import signal


def main() -> None:
    """Run the command. Ctrl-C ends it without a word while it is imported, and later as `_interrupts` has it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as the shell may have it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from blipstream_client._program import main as program

    program()


if __name__ == "__main__":
    main()
