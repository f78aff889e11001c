# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream_tune` is `blipstream tune`."""

from blipstream_tune.command import main

if __name__ == "__main__":
    main(prog_name="blipstream tune")
