# SPDX-License-Identifier: Apache-2.0
"""The models' configs for Triton: what is the same in several of them, or follows from the options, is said once."""

from dataclasses import dataclass, replace

from blipstream.options import (
    EXPLAIN_OPTIONS,
    EXPLAINED_TEXT,
    GIVEN_CAPTION,
    MATCH_MAPS,
    MATCHING_OPTION_NAMES,
    NUM_CAPTIONS,
    OPTION_NAMES,
    RERANK_OPTIONS,
    data_type,
)

HEADER = "# Written by `make configs` from build/model_configs.py"
BYTES = "STRING"  # what configs call the type that the protocol calls BYTES
GPU, CPU = "KIND_GPU", "KIND_CPU"


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model; the batch is not among its dimensions, and -1 is any size."""

    name: str
    data_type: str
    dims: tuple[int, ...] = (1,)
    optional: bool = False

    def __str__(self) -> str:
        dims = ", ".join(map(str, self.dims))
        optional = " optional: true" if self.optional else ""
        return f'{{ name: "{self.name}" data_type: TYPE_{self.data_type} dims: [ {dims} ]{optional} }}'


def option(name: str) -> Tensor:
    """The input of an option."""
    return Tensor(name, BYTES if data_type(name) == "BYTES" else data_type(name), optional=True)


OPTIONS = tuple(map(option, OPTION_NAMES))
GIVEN = Tensor("caption", BYTES)  # what `attention` explains
MAPS = tuple(option(name) for name in ("adapter", *EXPLAIN_OPTIONS) if name != "caption_index")
EXPLAIN = (Tensor(GIVEN_CAPTION, BYTES, optional=True), *map(option, EXPLAIN_OPTIONS))
MATCHING_OPTIONS = tuple(map(option, MATCHING_OPTION_NAMES))
EXPLAINED = Tensor(EXPLAINED_TEXT, BYTES, optional=True)  # what `explain_match` calls `text`: so it is known who asks
MATCH_EXPLAIN = tuple(map(option, MATCH_MAPS))
RERANK = tuple(map(option, RERANK_OPTIONS))
CANDIDATES = option("rerank")  # how many captions the decoder generates
CHOICE = option(NUM_CAPTIONS), option("min_match")  # which of them come back
IMAGE = Tensor("image", BYTES)
RESIZE_MODE = Tensor("resize_mode", BYTES, optional=True)
PIXELS = Tensor("pixels", "UINT8", (-1, -1, 3))
MATCH_IMAGE = replace(IMAGE, name="match_image", optional=True)  # the same for preprocess, which so knows who asks
MATCH_PIXELS = replace(PIXELS, name="match_pixels", optional=True)  # the same, for an encoder behind the decoder
IMAGE_EMBEDS = Tensor("image_embeds", "FP16", (-1, -1))
CAPTION, SCORE = Tensor("caption", BYTES, (-1,)), Tensor("score", "FP32", (-1,))
COUNTS = (Tensor("num_tokens", "INT32", (-1,)), Tensor("token_scores", "FP32", (-1, -1)))
CAPTIONS = (CAPTION, SCORE, *COUNTS)
EXPLANATION = (Tensor("words", BYTES, (-1,)), Tensor("attention", "FP32", (-1, -1, -1)))
TEXTS = Tensor("text", BYTES, (-1,))
SCORES = tuple(Tensor(name, "FP32", (-1,)) for name in ("match", "logit", "similarity"))
DROPPED = (Tensor("dropped", BYTES, (-1,)), Tensor("dropped_match", "FP32", (-1,)))
RANKED = (*CAPTIONS, *SCORES[:2], *DROPPED)
EMBEDDING = Tensor("embedding", "FP32", (-1,))
PIECES = (Tensor("text", BYTES), SCORE, CAPTION, *COUNTS, Tensor("finish_reason", BYTES))
ADAPTER = Tensor("adapter", BYTES)
LISTED = Tensor("listed_adapter", BYTES, optional=True)  # the name of an adapter to tell about; empty: of all
ADAPTERS = tuple(Tensor(name, BYTES, (-1,)) for name in ("name", "language", "about"))


def config(
    name: str, runs_on: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], *rest: str, max_batch: int = 64
) -> str:
    """A config; `runs_on` is the line of its backend or platform, `rest` comes behind the tensors."""
    parts = [HEADER, f'name: "{name}"', runs_on, f"max_batch_size: {max_batch}", ""]
    parts += ["input [", ",\n".join(f"  {tensor}" for tensor in inputs), "]"]
    parts += ["output [", ",\n".join(f"  {tensor}" for tensor in outputs), "]", ""]
    return "\n".join([*parts, *rest]) + "\n"


def batching(delay_us: int = 0, preferred: int = 0, queue: int = 0) -> str:
    """How Triton batches requests, waiting `delay_us` for more of them; `queue` bounds how many may wait, 0: nothing.

    A request may ask to be dropped from the queue earlier than after the five minutes that are allowed, not later.
    """
    lines = ["dynamic_batching {"]
    if preferred:
        lines.append(f"  preferred_batch_size: [ {preferred} ]")
    if delay_us:
        lines.append(f"  max_queue_delay_microseconds: {delay_us}")
    if queue:
        lines += [
            "  default_queue_policy {",
            f"    max_queue_size: {queue}",
            "    default_timeout_microseconds: 300000000",
            "    allow_timeout_override: true",
            "    timeout_action: REJECT",
            "  }",
        ]
    return "\n".join([*lines, "}"])


def instances(kind: str, count: int = 1) -> str:
    """How many instances of a model run, and where."""
    return f"instance_group [ {{ kind: {kind} count: {count} }} ]"


def parameter(name: str, value: str) -> str:
    """A parameter that a model or its backend reads."""
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'


def comment(text: str) -> str:
    """Lines for whoever reads the config."""
    return "\n".join(f"# {line}" for line in text.strip().splitlines())


def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    """A step of an ensemble. `inputs` and `outputs` give the model's tensors their names in the ensemble."""
    maps = [f'      input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    maps += [f'      output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return "\n".join(["    {", f'      model_name: "{model}"', "      model_version: -1", *maps, "    }"])


def steps(*each: str) -> str:
    """The steps of an ensemble."""
    return "\n".join(["ensemble_scheduling {", "  step [", ",\n".join(each), "  ]", "}"])


def ensemble(
    image: tuple[Tensor, ...],
    pixels: str = "pixels",
    options: tuple[Tensor, ...] = OPTIONS,
    outputs: tuple[Tensor, ...] = CAPTIONS,
) -> str:
    """The three steps from an image to captions. `pixels` names what preprocess hands to the encoder.

    Options go to preprocess, too: it refuses at once what the decoder would refuse after the work.
    """
    return steps(
        step("preprocess", same(image + options), {"pixels": pixels}),
        step("encoder", {"pixels": pixels}, same((IMAGE_EMBEDS,))),
        step("decoder", same((IMAGE_EMBEDS, *options)), same(outputs)),
    )


def matching_ensemble(name: str, texts: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> str:
    """The three steps from an image, with texts or without, to scores or an embedding.

    A server whose captioner has the same encoder asks that one: blipstream/server/served_repository.py.
    """
    image = (IMAGE, RESIZE_MODE)
    return config(
        name,
        ENSEMBLE,
        (*image, *texts),
        outputs,
        steps(
            step("preprocess", {MATCH_IMAGE.name: IMAGE.name} | same((RESIZE_MODE, *texts[:1])), same((PIXELS,))),
            step("match_encoder", same((PIXELS,)), same((IMAGE_EMBEDS,))),
            step("matcher", same((IMAGE_EMBEDS, *texts)), same(outputs)),
        ),
    )


def explain_match_ensemble() -> str:
    """The same three steps, from an image and one text to where the words meet the image."""
    image, text = (IMAGE, RESIZE_MODE), replace(TEXTS, dims=(1,))
    outputs, explained = (*EXPLANATION, *SCORES[:2]), {EXPLAINED.name: text.name}
    return config(
        "explain_match",
        ENSEMBLE,
        (*image, text, *MATCH_EXPLAIN),
        outputs,
        steps(
            step("preprocess", {MATCH_IMAGE.name: IMAGE.name} | same((RESIZE_MODE,)) | explained, same((PIXELS,))),
            step("match_encoder", same((PIXELS,)), same((IMAGE_EMBEDS,))),
            step("matcher", same((IMAGE_EMBEDS, *MATCH_EXPLAIN)) | explained, same(outputs)),
        ),
    )


def rerank_ensemble() -> str:
    """The steps from an image to captions that are chosen by matching.

    The second encoder gets its pixels from the decoder, which only passes them on. If two steps of an ensemble could
    begin at once, Triton 2.51 would die when a client hangs up at that moment (triton-inference-server/core, pull
    request 483). A server whose captioner has matching's encoder leaves the second one out:
    blipstream/server/served_repository.py.
    """
    seen = (IMAGE, RESIZE_MODE, *OPTIONS, *RERANK)
    candidates = {tensor.name: f"candidate_{tensor.name}" for tensor in CAPTIONS}
    given = {"text" if name == CAPTION.name else name: candidate for name, candidate in candidates.items()}
    return config(
        "rerank",
        ENSEMBLE,
        seen,
        RANKED,
        steps(
            step("preprocess", same(seen), same((PIXELS,))),
            step("encoder", same((PIXELS,)), same((IMAGE_EMBEDS,))),
            step(
                "decoder",
                same((IMAGE_EMBEDS, *OPTIONS, CANDIDATES)) | {MATCH_PIXELS.name: PIXELS.name},
                candidates | same((MATCH_PIXELS,)),
            ),
            step("match_encoder", {PIXELS.name: MATCH_PIXELS.name}, {IMAGE_EMBEDS.name: "match_image_embeds"}),
            step("matcher", {IMAGE_EMBEDS.name: "match_image_embeds"} | given | same(CHOICE), same(RANKED)),
        ),
    )


def same(tensors: tuple[Tensor, ...]) -> dict[str, str]:
    """Tensors that are called the same within an ensemble and in its step."""
    return {tensor.name: tensor.name for tensor in tensors}


ENSEMBLE, PYTHON = 'platform: "ensemble"', 'backend: "python"'


def preprocess(*rest: str) -> str:
    """Either input is optional: a client sends an image or pixels. Of texts, it only looks how many there are.

    It lists the adapters, too: it answers at once, whatever the decoder has to do, and another model would be another
    process.
    """
    either = replace(IMAGE, optional=True), replace(PIXELS, optional=True)
    matching = MATCH_IMAGE, replace(TEXTS, optional=True), EXPLAINED
    inputs = (*either, RESIZE_MODE, *OPTIONS, *EXPLAIN, *RERANK, *matching, LISTED)
    return config("preprocess", PYTHON, inputs, (PIXELS, *ADAPTERS), *rest)


UNBOUNDED = """
The model takes every request at once into a queue of its own, which is bounded. Triton's must refuse nothing: 2.51 dies
if a client hangs up while it refuses"""

NO_POLICY = """
No queue policy: with one, Triton may leave waiting requests alone for up to half a second after a batch, unless more
of them come. preprocess bounds how many wait."""


def encoder(name: str, runs_on: str, why: str, scheduling: str, kind: str, *rest: str) -> str:
    """Pixels to image_embeds."""
    return config(name, runs_on, (PIXELS,), (IMAGE_EMBEDS,), comment(why), scheduling, instances(kind), *rest)


def encoders(name: str) -> dict[str, str]:
    """The configs of the captioner's encoder, or of the one that matching has."""
    return {
        f"{name}/config.pbtxt": encoder(
            name,
            'platform: "tensorrt_plan"\ndefault_model_filename: "tensorrt/model.plan"',
            NO_POLICY,
            batching(delay_us=2000),
            GPU,
        ),
        f"{name}/configs/cuda.pbtxt": encoder(
            name, PYTHON, NO_POLICY, batching(delay_us=2000), GPU, parameter("runtime", "torch")
        ),
        f"{name}/configs/cpu.pbtxt": encoder(
            name,
            PYTHON,
            NO_POLICY + "\nOn a CPU, larger batches than 8 are hardly faster for each image",
            batching(delay_us=2000, preferred=8),
            CPU,
            parameter("runtime", "openvino"),
        ),
    }


def matcher(kind: str, runtime: str) -> str:
    """image_embeds and texts to scores, or one of them to its embedding. It batches texts itself, of any number.

    If the texts are a decoder's captions, with its other outputs, they come back as well, chosen and in order. It makes
    an explanation only of `explained_text`.
    """
    taken = (IMAGE_EMBEDS, TEXTS, *MATCHING_OPTIONS, SCORE, *COUNTS, *CHOICE, EXPLAINED, *MATCH_EXPLAIN)
    inputs = tuple(replace(tensor, optional=True) for tensor in taken)
    rest = batching(queue=512), instances(kind), parameter("runtime", runtime)
    return config("matcher", PYTHON, inputs, (*SCORES, EMBEDDING, *CAPTIONS, *DROPPED, *EXPLANATION), *rest)


def decoder(kind: str, *rest: str) -> str:
    """image_embeds to captions and explanations. It makes an explanation only if that is among the wanted outputs."""
    inputs = (IMAGE_EMBEDS, *OPTIONS, *EXPLAIN, CANDIDATES, MATCH_PIXELS)
    outputs = (*CAPTIONS, *EXPLANATION, replace(MATCH_PIXELS, optional=False))
    return config("decoder", PYTHON, inputs, outputs, batching(delay_us=2000, queue=512), instances(kind), *rest)


def caption_stream(kind: str) -> str:
    """An image to a caption that arrives piece by piece. Its engine batches between steps, so Triton need not."""
    inputs, policy = (IMAGE, RESIZE_MODE, *OPTIONS), "model_transaction_policy { decoupled: true }"
    rest = policy, batching(queue=512), instances(kind)
    return config("caption_stream", PYTHON, inputs, PIECES, *rest, max_batch=1)


def model_configs() -> dict[str, str]:
    """The text of each config that git tracks, by its path in model_repository/."""
    image = (IMAGE, RESIZE_MODE)
    return {
        "preprocess/config.pbtxt": preprocess(
            comment(UNBOUNDED + "\nNo delay: a batch decodes no faster than its images one by one"),
            batching(),
            comment("""
Each process decodes in threads, and all processes together have one thread for each core. They also have as many
processes of their own for images that may take long"""),
            instances(CPU, count=2),
            comment("""
"fast" decodes a JPEG file at a half, a quarter or an eighth of its size where that leaves at least twice the model's
image size a side. The pixels are close to those of "exact", but not the reference's"""),
            parameter("jpeg_scaling", "exact"),
        ),
        "preprocess/gpu_decode.pbtxt": preprocess(
            comment(UNBOUNDED + "\nA GPU decodes many JPEG files together faster than one by one"),
            batching(delay_us=1000),
            instances(GPU),
        ),
        **encoders("encoder"),
        "decoder/config.pbtxt": decoder(
            GPU, comment("image_embeds stay on the GPU"), parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "no")
        ),
        "decoder/configs/cpu.pbtxt": decoder(CPU),
        "caption/config.pbtxt": config("caption", ENSEMBLE, (*image, *OPTIONS), CAPTIONS, ensemble(image)),
        "caption_pixels/config.pbtxt": config(
            "caption_pixels", ENSEMBLE, (PIXELS, *OPTIONS), CAPTIONS, ensemble((PIXELS,), pixels="checked_pixels")
        ),
        "explain/config.pbtxt": config(
            "explain",
            ENSEMBLE,
            (*image, *OPTIONS, *EXPLAIN),
            (*CAPTIONS, *EXPLANATION),
            ensemble(image, options=(*OPTIONS, *EXPLAIN), outputs=(*CAPTIONS, *EXPLANATION)),
        ),
        "attention/config.pbtxt": config(
            "attention",
            ENSEMBLE,
            (IMAGE_EMBEDS, GIVEN, *MAPS),
            EXPLANATION,
            steps(step("decoder", same((IMAGE_EMBEDS, *MAPS)) | {GIVEN_CAPTION: GIVEN.name}, same(EXPLANATION))),
        ),
        "adapters/config.pbtxt": config(
            "adapters",
            ENSEMBLE,
            (ADAPTER,),
            ADAPTERS,
            steps(step("preprocess", {LISTED.name: ADAPTER.name}, same(ADAPTERS))),
        ),
        "caption_stream/config.pbtxt": caption_stream(GPU),
        "caption_stream/configs/cpu.pbtxt": caption_stream(CPU),
        **encoders("match_encoder"),
        "matcher/config.pbtxt": matcher(GPU, "torch"),
        "matcher/configs/cpu.pbtxt": matcher(CPU, "openvino"),
        "match/config.pbtxt": matching_ensemble("match", (TEXTS, *MATCHING_OPTIONS), SCORES),
        "explain_match/config.pbtxt": explain_match_ensemble(),
        "rerank/config.pbtxt": rerank_ensemble(),
        "embed_image/config.pbtxt": matching_ensemble("embed_image", (), (EMBEDDING,)),
        "embed_text/config.pbtxt": config(
            "embed_text",
            ENSEMBLE,
            (TEXTS, *MATCHING_OPTIONS),  # of one text: with [ 1 ], `generate` would make a batch of several
            (EMBEDDING,),
            steps(step("matcher", same((TEXTS, *MATCHING_OPTIONS)), same((EMBEDDING,)))),
        ),
    }
