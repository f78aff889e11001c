# SPDX-License-Identifier: Apache-2.0
"""The start of the command line, before anything that takes long to import."""

import signal


def main() -> None:
    """Run the command. While it is being imported, Ctrl-C ends the process silently."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not SIG_IGN, as in background jobs
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from blipstream_client._cli import main as cli

    cli()


if __name__ == "__main__":
    main()
