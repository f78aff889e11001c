# SPDX-License-Identifier: Apache-2.0
"""The files that `blipstream bulk` writes."""

import csv
import json
from pathlib import Path
from typing import Any

from blipstream_client.bulk.extras import pyarrow

pq = pyarrow("This test").parquet


def read(output: Path) -> list[dict[str, Any]]:
    match output.suffix:
        case ".jsonl":
            return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        case ".csv":
            with output.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        case _:
            table: list[dict[str, Any]] = pq.read_table(output).to_pylist()
            return table
