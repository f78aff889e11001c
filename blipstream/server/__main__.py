# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream.server` serves captions."""

from blipstream.server import signals

if __name__ == "__main__":
    signals.exit_on_signals()  # before the imports that take time
    from blipstream.server.command import main

    main()
