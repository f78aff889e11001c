# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream_bench` is `blipstream bench`."""

from blipstream_bench.command import main

if __name__ == "__main__":
    main(prog_name="blipstream bench")
