# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream_build` is `blipstream build`."""

from blipstream_build.command import main

if __name__ == "__main__":
    main(prog_name="blipstream build")
