# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream.server` is `blipstream serve`."""

from blipstream import signals

if __name__ == "__main__":
    signals.exit_on_signals(0)  # before the imports that take time
    from blipstream.server.command import main

    main()
