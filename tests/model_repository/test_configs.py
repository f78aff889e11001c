# SPDX-License-Identifier: Apache-2.0
"""The contract: every config parses, its variants agree, and engine and client know the same tensors."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from blipstream.options import GIVEN_CAPTION, DecodingOptions, ExplainOptions
from blipstream.serving.loading_service import MAX_WAITING
from blipstream.vision.tensorrt import PLAN_NAME
from blipstream_client._explain_options import ALL_OPTIONS
from blipstream_client._options import OPTIONS
from tests.conftest import ROOT

REPOSITORY = ROOT / "model_repository"
CONFIGS = [path for name in ("config", "configs/*", "gpu_decode") for path in REPOSITORY.glob(f"*/{name}.pbtxt")]
ADAPTERS = sorted(REPOSITORY.glob("*/1/model.py"))
MAX_ADAPTER_LINES = 80

# the contract of the design
INPUTS = {
    "preprocess": {},  # image or pixels, so both are optional
    "encoder": {"pixels": ("UINT8", [-1, -1, 3])},
    "decoder": {"image_embeds": ("FP16", [-1, -1])},
    "caption": {"image": ("STRING", [1])},
    "caption_stream": {"image": ("STRING", [1])},
    "caption_pixels": {"pixels": ("UINT8", [-1, -1, 3])},
    "explain": {"image": ("STRING", [1])},
    "attention": {"image_embeds": ("FP16", [-1, -1]), "caption": ("STRING", [1])},
    "match_encoder": {"pixels": ("UINT8", [-1, -1, 3])},
    "matcher": {},  # image_embeds, text or both, so both are optional
    "match": {"image": ("STRING", [1]), "text": ("STRING", [-1])},
    "explain_match": {"image": ("STRING", [1]), "text": ("STRING", [1])},
    "rerank": {"image": ("STRING", [1])},
    "embed_image": {"image": ("STRING", [1])},
    "embed_text": {"text": ("STRING", [-1])},
    "adapters": {"adapter": ("STRING", [1])},
}
IMAGE_INPUTS = {"image": ("STRING", [1]), "pixels": ("UINT8", [-1, -1, 3])}  # preprocess takes either,
IMAGE_INPUTS |= {"match_image": ("STRING", [1]), "text": ("STRING", [-1])}  # or what matching has,
IMAGE_INPUTS |= {"listed_adapter": ("STRING", [1])}  # or what adapters has
OPTION_INPUTS: dict[str, dict[str, str]] = {
    "encoder": {},
    "decoder": {
        "prompt": "STRING",
        "include_prompt": "BOOL",
        "adapter": "STRING",
        "max_tokens": "INT32",
        "min_tokens": "INT32",
        "num_captions": "INT32",
        "repetition_penalty": "FP32",
        "no_repeat_ngram_size": "INT32",
        "num_beams": "INT32",
        "length_penalty": "FP32",
        "early_stopping": "BOOL",
        "do_sample": "BOOL",
        "temperature": "FP32",
        "top_k": "INT32",
        "top_p": "FP32",
        "seed": "INT64",
    },
}
OPTION_INPUTS["caption_pixels"] = OPTION_INPUTS["decoder"]
OPTION_INPUTS["caption"] = {"resize_mode": "STRING"} | OPTION_INPUTS["decoder"]
OPTION_INPUTS["caption_stream"] = OPTION_INPUTS["caption"]
MAPS = {"layer": "INT32", "head": "INT32", "method": "STRING"}
OPTION_INPUTS["attention"] = {"adapter": "STRING"} | MAPS
EXPLAIN_INPUTS = {"given_caption": "STRING", "caption_index": "INT32"} | MAPS
OPTION_INPUTS["decoder"] = OPTION_INPUTS["decoder"] | EXPLAIN_INPUTS
OPTION_INPUTS["explain"] = OPTION_INPUTS["caption"] | EXPLAIN_INPUTS
RERANK_INPUTS = {"rerank": "INT32", "min_match": "FP32"}
OPTION_INPUTS["rerank"] = OPTION_INPUTS["caption"] | RERANK_INPUTS
OPTION_INPUTS["preprocess"] = OPTION_INPUTS["explain"] | RERANK_INPUTS | {"explained_text": "STRING"}
OPTION_INPUTS["decoder"] = OPTION_INPUTS["decoder"] | {"rerank": "INT32"}
OPTION_INPUTS["match_encoder"] = {}
OPTION_INPUTS["embed_text"] = {"truncate": "BOOL"}
OPTION_INPUTS["matcher"] = OPTION_INPUTS["embed_text"] | {"num_captions": "INT32", "min_match": "FP32"}
OPTION_INPUTS["matcher"] |= {"explained_text": "STRING", "layer": "INT32", "head": "INT32"}
OPTION_INPUTS["embed_image"] = {"resize_mode": "STRING"}
OPTION_INPUTS["explain_match"] = {"resize_mode": "STRING", "layer": "INT32", "head": "INT32"}
OPTION_INPUTS["adapters"] = {}
OPTION_INPUTS["match"] = {"resize_mode": "STRING", "truncate": "BOOL"}
CAPTION_OUTPUTS = {
    "caption": ("STRING", [-1]),
    "score": ("FP32", [-1]),
    "num_tokens": ("INT32", [-1]),
    "token_scores": ("FP32", [-1, -1]),
}
EXPLANATION_OUTPUTS = {"words": ("STRING", [-1]), "attention": ("FP32", [-1, -1, -1])}
SCORES = {"match": ("FP32", [-1]), "logit": ("FP32", [-1]), "similarity": ("FP32", [-1])}
EMBEDDING = {"embedding": ("FP32", [-1])}
LISTED = {name: ("STRING", [-1]) for name in ("name", "language", "about")}
DROPPED = {"dropped": ("STRING", [-1]), "dropped_match": ("FP32", [-1])}
CANDIDATE_INPUTS = {name: CAPTION_OUTPUTS[name] for name in ("score", "num_tokens", "token_scores")}
PASSED_ON = {"match_pixels": ("UINT8", [-1, -1, 3])}
EITHER = {
    "decoder": PASSED_ON,
    "matcher": {"image_embeds": ("FP16", [-1, -1]), "text": ("STRING", [-1])} | CANDIDATE_INPUTS,
}
OUTPUTS = {
    "preprocess": {"pixels": ("UINT8", [-1, -1, 3])} | LISTED,
    "adapters": LISTED,
    "encoder": {"image_embeds": ("FP16", [-1, -1])},
    "decoder": CAPTION_OUTPUTS | EXPLANATION_OUTPUTS | PASSED_ON,
    "caption": CAPTION_OUTPUTS,
    "explain": CAPTION_OUTPUTS | EXPLANATION_OUTPUTS,
    "attention": EXPLANATION_OUTPUTS,
    "caption_stream": CAPTION_OUTPUTS | {"text": ("STRING", [1]), "finish_reason": ("STRING", [1])},
    "caption_pixels": CAPTION_OUTPUTS,
    "match_encoder": {"image_embeds": ("FP16", [-1, -1])},
    "matcher": SCORES | EMBEDDING | CAPTION_OUTPUTS | DROPPED | EXPLANATION_OUTPUTS,
    "match": SCORES,
    "explain_match": {name: SCORES[name] for name in ("match", "logit")} | EXPLANATION_OUTPUTS,
    "rerank": CAPTION_OUTPUTS | {name: SCORES[name] for name in ("match", "logit")} | DROPPED,
    "embed_image": EMBEDDING,
    "embed_text": EMBEDDING,
}
STEPS = {ensemble: ["preprocess", "encoder", "decoder"] for ensemble in ("caption", "caption_pixels", "explain")}
STEPS["attention"] = ["decoder"]
CAPTIONING_STEPS = {
    ensemble: ["preprocess", "encoder", "decoder"] for ensemble in ("caption", "caption_pixels", "explain")
}
MATCHING_STEPS = {
    ensemble: ["preprocess", "match_encoder", "matcher"] for ensemble in ("match", "explain_match", "embed_image")
}
STEPS = CAPTIONING_STEPS | MATCHING_STEPS | {"attention": ["decoder"], "embed_text": ["matcher"]}
STEPS["adapters"] = ["preprocess"]
STEPS["rerank"] = ["preprocess", "encoder", "decoder", "match_encoder", "matcher"]


def parse(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def type_name(tensor: model_config_pb2.ModelInput | model_config_pb2.ModelOutput) -> str:
    return str(model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_"))


def model_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).parts[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_contract(path: Path) -> None:
    config, model = parse(path), model_of(path)
    assert config.name == model
    needed = {tensor.name: (type_name(tensor), list(tensor.dims)) for tensor in config.input if not tensor.optional}
    optional = {tensor.name: (type_name(tensor), list(tensor.dims)) for tensor in config.input if tensor.optional}
    outputs = {tensor.name: (type_name(tensor), list(tensor.dims)) for tensor in config.output}
    options = {name: (kind, [1]) for name, kind in OPTION_INPUTS[model].items()}
    either = IMAGE_INPUTS if model == "preprocess" else EITHER.get(model, {})
    assert (needed, optional, outputs) == (INPUTS[model], options | either, OUTPUTS[model])
    assert config.max_batch_size == (1 if model == "caption_stream" else 64)  # its engine batches between steps
    assert config.model_transaction_policy.decoupled == (model == "caption_stream")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_scheduling(path: Path) -> None:
    """Each model batches and has a bound on its queue, or a model before it has; none caches responses."""
    config = parse(path)
    assert not config.response_cache.enable
    if model_of(path) in STEPS:
        assert [step.model_name for step in config.ensemble_scheduling.step] == STEPS[model_of(path)]
        return
    (group,) = config.instance_group
    cores_share_it = model_of(path) == "preprocess" and group.kind == group.KIND_CPU
    assert group.count >= (2 if cores_share_it else 1)
    assert config.HasField("dynamic_batching")
    # With one, Triton prepares no batch for the encoder while it computes another. preprocess has a queue of its own.
    if model_of(path) in ("encoder", "match_encoder", "preprocess"):
        assert not config.dynamic_batching.HasField("default_queue_policy")
        return
    policy = config.dynamic_batching.default_queue_policy
    assert 0 < policy.max_queue_size <= 1024
    # a request's own timeout may be shorter than this one, not longer
    assert policy.allow_timeout_override
    assert policy.timeout_action == policy.REJECT
    assert policy.default_timeout_microseconds == 300_000_000


def test_the_first_queue_is_the_shortest() -> None:
    """Requests beyond what the server can carry are refused before any work."""
    sizes = {path: parse(path).dynamic_batching.default_queue_policy.max_queue_size for path in CONFIGS}
    assert min(size for path, size in sizes.items() if model_of(path) == "decoder") > MAX_WAITING


def test_the_default_encoder_is_tensorrt() -> None:
    """Triton falls back to it where --model-config-name is mistyped: it fails to load, rather than serve slowly."""
    config = parse(REPOSITORY / "encoder/config.pbtxt")
    assert (config.platform, config.default_model_filename) == ("tensorrt_plan", f"tensorrt/{PLAN_NAME}")


@pytest.mark.parametrize("ensemble", [*CAPTIONING_STEPS, "rerank"])
def test_every_option_passes_through_the_ensemble(ensemble: str) -> None:
    """Preprocess gets them too, and refuses early what the decoder would refuse later."""
    config = parse(REPOSITORY / ensemble / "config.pbtxt")
    for step in config.ensemble_scheduling.step:
        options = {name for name in OPTION_INPUTS[step.model_name] if name in OPTION_INPUTS[ensemble]}
        expected = {name: name for name in options}
        if ensemble == "attention":
            expected[GIVEN_CAPTION] = "caption"
        assert {
            name: step.input_map[name] for name in step.input_map if name in OPTION_INPUTS["preprocess"]
        } == expected


@pytest.mark.parametrize("ensemble", STEPS)
def test_ensembles_have_a_version_folder(ensemble: str) -> None:
    """Triton expects one, even if it is empty, and git does not keep empty folders."""
    assert (REPOSITORY / ensemble / "1" / ".gitkeep").is_file()


def test_engine_and_client_know_the_same_options() -> None:
    assert {field.name for field in fields(DecodingOptions)} == set(OPTION_INPUTS["caption_pixels"])
    assert {field.name for field in fields(ExplainOptions)} == set(EXPLAIN_INPUTS) - {GIVEN_CAPTION}
    assert set(OPTIONS) == set(OPTION_INPUTS["caption"])
    assert set(ALL_OPTIONS) == set(OPTION_INPUTS["explain"]) - {GIVEN_CAPTION}
    for name, option in ALL_OPTIONS.items():
        kind = OPTION_INPUTS["explain"][name]
        expected = triton_to_np_dtype("BYTES" if kind == "STRING" else kind)
        assert np.dtype(option.type.dtype) == np.dtype(expected)


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_adapters_stay_thin(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_ADAPTER_LINES


@pytest.mark.parametrize("ensemble", STEPS)
def test_no_two_steps_of_an_ensemble_begin_at_once(ensemble: str) -> None:
    """Triton 2.51 dies if a client hangs up at that moment."""
    config = parse(REPOSITORY / ensemble / "config.pbtxt")
    there, waiting = {tensor.name for tensor in config.input}, list(config.ensemble_scheduling.step)
    while waiting:
        (ready,) = (step for step in waiting if there.issuperset(step.input_map.values()))
        waiting.remove(ready)
        there |= set(ready.output_map.values())
