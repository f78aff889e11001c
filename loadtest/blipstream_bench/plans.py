# SPDX-License-Identifier: Apache-2.0
"""What the benchmark measures, and how much of it. Imports nothing that is slow to load."""

from dataclasses import dataclass

STRATEGIES = {"greedy": 1, "beam3": 3, "beam5": 5}  # beams
EXPLAIN = "explain"  # greedy search, and then a heatmap for each word
ADAPTERS = "adapters"
NUM_TEXTS = {"match1": 1, "match10": 10, "match100": 100}  # that are matched with each image
EMBED_IMAGE, EMBED_TEXT = "embed_image", "embed_text"
TASKS = {  # what a run measures, by subject
    "captions": tuple(STRATEGIES),
    "heatmaps": ("greedy", EXPLAIN),
    ADAPTERS: (),  # which has a run of its own
    "matching": (*NUM_TEXTS, EMBED_IMAGE, EMBED_TEXT),
}
WORDS_OF_TEXT = 8
PAIRS = {"cpu": 32, "cuda": 128}  # of an image and a text, the most that transformers reads in one pass, by device
NEW_TOKENS = 12  # of each caption, forced, so that every system does the same work
PICTURE_SIZE = (640, 480)  # pixels: width, height
COMPARED = 4  # images or texts whose answers are compared with those of transformers
RUNTIMES = {"cpu": "openvino", "cuda": "torch"}  # of the encoder, by device
CLIENTS = {"cpu": 1, "cuda": 8}  # client processes of Triton, by device
# runs of each batch size before it is measured, by device; a CUDA graph is recorded in the second
WARM_UPS = {"cpu": 1, "cuda": 3}


@dataclass(frozen=True)
class BenchPlan:
    """How much is measured."""

    dtypes: tuple[str, ...]
    batches: tuple[int, ...]  # batch sizes to try; the one with the most images a second is measured
    in_flight: int  # requests to Triton at once
    rounds: int
    seconds: float  # of each measurement, which is at least one batch; short, since systems take turns
    images: int  # different pictures
    subject: str = "captions"  # a key of TASKS
    tasks: tuple[str, ...] = TASKS["captions"]
    layers: int | None = None  # of a shallow checkpoint


PLANS = {  # by device
    "cpu": BenchPlan(("f32", "bf16"), (1, 4, 8, 16), in_flight=32, rounds=3, seconds=3, images=64),
    "cuda": BenchPlan(("f32", "f16"), (1, 8, 32, 64, 128), in_flight=256, rounds=5, seconds=2, images=512),
}
QUICK = BenchPlan(("f32",), (2,), in_flight=2, rounds=1, seconds=0, images=COMPARED, layers=2)
DEFAULT_ARCHITECTURES = {"cpu": ("base",), "cuda": ("base", "large")}
