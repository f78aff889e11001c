# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream_demo` is `blipstream demo`."""

from blipstream import signals

if __name__ == "__main__":
    signals.exit_on_signals()  # before the imports that take time
    from blipstream_demo.command import main

    main(prog_name="blipstream demo")
