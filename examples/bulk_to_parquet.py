# SPDX-License-Identifier: Apache-2.0
"""Caption a folder into a Parquet table: python examples/bulk_to_parquet.py FOLDER OUTPUT.parquet.

Run it again after an interruption, and it goes on where it was.
"""

import subprocess
import sys
from pathlib import Path

try:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]
except ImportError:
    sys.exit("Error: pyarrow is not installed here: pip install './client[bulk]'")


def main(folder: str, output: str) -> None:
    """Write a row for each image, then read the table."""
    blipstream = Path(sys.executable).with_name("blipstream")
    done = subprocess.run([blipstream, "bulk", folder, "--output", output], check=False)
    if done.returncode not in (0, 1) or not any(Path(output).glob("*.parquet")):  # it has said why
        sys.exit(done.returncode)
    table = pq.read_table(output, columns=["name", "caption", "error"])
    print(f"{table.num_rows} rows, {table['error'].null_count} without an error")
    for row in table.to_pylist():
        print(f"{Path(row['name']).name}: {row['caption'] or row['error']}")
    sys.exit(done.returncode)  # 1 if an image failed


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].endswith(".parquet"):
        sys.exit("usage: python examples/bulk_to_parquet.py FOLDER OUTPUT.parquet")
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
