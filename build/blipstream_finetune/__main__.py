# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream_finetune` is `blipstream finetune`."""

from blipstream import signals

if __name__ == "__main__":
    signals.exit_on_signals()  # before the imports that take time
    from blipstream_finetune.command import main

    main(prog_name="blipstream finetune")
