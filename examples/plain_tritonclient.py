# SPDX-License-Identifier: Apache-2.0
"""Ask over gRPC with NVIDIA's tritonclient alone: python examples/plain_tritonclient.py IMAGE [HOST:PORT]."""

import sys
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException


def main(image: Path, address: str = "localhost:8001") -> None:
    """Print the three best captions of a beam search."""
    encoded = InferInput("image", [1, 1], "BYTES")
    encoded.set_data_from_numpy(np.array([[image.read_bytes()]], np.object_))
    inputs = [encoded]
    for name in ("num_beams", "num_captions"):
        option = InferInput(name, [1, 1], "INT32")
        option.set_data_from_numpy(np.array([[3]], np.int32))
        inputs.append(option)
    with InferenceServerClient(address) as client:
        answer = client.infer("caption", inputs)
    for caption, score in zip(answer.as_numpy("caption")[0], answer.as_numpy("score")[0], strict=True):
        print(f"{score:7.3f}  {caption.decode()}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python examples/plain_tritonclient.py IMAGE [HOST:PORT]")
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except (OSError, InferenceServerException) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
