# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream_build.adapters` is `blipstream adapter`."""

from blipstream import signals

if __name__ == "__main__":
    signals.exit_on_signals()  # before the imports that take time
    from blipstream_build.adapters.command import main

    main(prog_name="blipstream adapter")
