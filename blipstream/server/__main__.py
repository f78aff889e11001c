# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream.server` serves captions."""

from blipstream.server.command import main

if __name__ == "__main__":
    main()
