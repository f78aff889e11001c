# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream_loadtest` is `blipstream loadtest`."""

from blipstream_loadtest.command import main

if __name__ == "__main__":
    main(prog_name="blipstream loadtest")
