# SPDX-License-Identifier: Apache-2.0
"""The model repository that Triton gets: the given one, with the defaults in its configs."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from blipstream.adapters import FOLDER_NAME, AdapterConfig
from blipstream.calibration import NAME as CALIBRATION
from blipstream.calibration import Calibration
from blipstream.config import MATCHING, CheckpointConfig, DType, MatchConfig, TextConfig, VisionConfig
from blipstream.defaults import from_operator, over
from blipstream.dtypes import resolve
from blipstream.errors import ServerError
from blipstream.options import OptionDefaults
from blipstream.server.served_repository import check_adapter, effective, served_repository, why_not_matching
from blipstream.server.workspace import Workspace
from tests.conftest import ROOT

TAKE_OPTIONS = {"caption", "caption_pixels", "caption_stream", "decoder", "explain", "preprocess"}
CAPTIONING = TAKE_OPTIONS | {"adapters", "attention", "encoder"}
MATCHING_TAKES_OPTIONS = {"matcher", "rerank", "explain_match"}  # where there is a captioner, too
CONFIG = CheckpointConfig(
    "x",
    "0",
    "f32",
    VisionConfig(192, 16, 8, 8, 1, 1, 1e-6, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    TextConfig(9, 8, 8, 8, 1, 1, 64, 1e-12, 1, 2),
)
DEFAULTS = OptionDefaults({"prompt": 'a "quoted" \\ café\n', "max_tokens": 20}, frozenset({"max_tokens"}))

SAID = {"temperature": "1.5", "threshold": "0.25"}  # by a config


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    workspace = Workspace()
    yield workspace
    workspace.close()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for pattern in ("*/config.pbtxt", "*/configs/*.pbtxt", "*/1/model.py"):
        for path in (ROOT / "model_repository").glob(pattern):
            target = tmp_path / path.relative_to(ROOT / "model_repository")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return tmp_path


def parse(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def built(repository: Path, model: str, encoder: str | None = None, runtime: str = "torch") -> None:
    """Let a model have an artifact. A matcher's names the encoder that it takes image_embeds from."""
    folder = repository / model / "1" / (runtime if encoder else "artifact")
    folder.mkdir(parents=True)
    matching = MatchConfig(2, 3, 256, encoder) if encoder else None
    replace(CONFIG, matching=matching).save(folder)


def encoders(served: Path, ensemble: str) -> list[str]:
    steps = parse(served / ensemble / "config.pbtxt").ensemble_scheduling.step
    return [step.model_name for step in steps if "encoder" in step.model_name]


def test_without_defaults_it_is_the_repository_itself(repository: Path, workspace: Workspace) -> None:
    served = served_repository(repository, OptionDefaults(), workspace)
    assert {path.name for path in served.iterdir()} == CAPTIONING
    assert all((served / model).samefile(repository / model) for model in CAPTIONING)


def test_matching_alone(repository: Path, workspace: Workspace) -> None:
    built(repository, "matcher", "match_encoder")
    served = served_repository(repository, OptionDefaults(), workspace)
    assert {path.name for path in served.iterdir()} == {"preprocess", *MATCHING}
    assert encoders(served, "match") == ["match_encoder"]


@pytest.mark.parametrize("defaults", [OptionDefaults(), DEFAULTS, OptionDefaults({}, frozenset(), "letterbox")])
def test_both_side_by_side(repository: Path, workspace: Workspace, defaults: OptionDefaults) -> None:
    built(repository, "decoder")
    built(repository, "matcher", "match_encoder")
    served = served_repository(repository, defaults, workspace)
    assert {path.name for path in served.iterdir()} == CAPTIONING | {*MATCHING, "rerank"}
    assert encoders(served, "match") == encoders(served, "embed_image") == ["match_encoder"]
    assert encoders(served, "rerank") == ["encoder", "match_encoder"]
    for model in MATCHING_TAKES_OPTIONS:
        assert ("option_defaults" in parse(served / model / "config.pbtxt").parameters) == (
            defaults != OptionDefaults()
        )


@pytest.mark.parametrize("defaults", [OptionDefaults(), DEFAULTS])
def test_an_encoder_that_is_shared(repository: Path, workspace: Workspace, defaults: OptionDefaults) -> None:
    built(repository, "decoder")
    built(repository, "matcher", "encoder")
    served = served_repository(repository, defaults, workspace)
    assert {path.name for path in served.iterdir()} == CAPTIONING | {*MATCHING, "rerank"} - {"match_encoder"}
    assert encoders(served, "match") == encoders(served, "embed_image") == encoders(served, "rerank") == ["encoder"]
    *_, decoder, matcher = parse(served / "rerank/config.pbtxt").ensemble_scheduling.step
    assert "match_pixels" not in [*decoder.input_map, *decoder.output_map]
    assert matcher.input_map["image_embeds"] == "image_embeds"


def test_a_restart_after_the_encoder_has_changed(repository: Path, workspace: Workspace) -> None:
    """The repository itself is left as it is."""
    before = (repository / "match/config.pbtxt").read_text()
    built(repository, "decoder")
    for encoder in ("match_encoder", "encoder", "match_encoder"):
        shutil.rmtree(repository / "matcher/1")
        built(repository, "matcher", encoder)
        served = served_repository(repository, OptionDefaults(), workspace)
        assert encoders(served, "match") == [encoder]
        assert (served / "match_encoder").exists() == (encoder == "match_encoder")
    assert (repository / "match/config.pbtxt").read_text() == before


def test_matchers_of_two_runtimes(repository: Path, workspace: Workspace) -> None:
    """One shares the captioner's encoder, and the other does not: the configuration decides."""
    built(repository, "decoder")
    built(repository, "matcher", "encoder", "openvino")
    built(repository, "matcher", "match_encoder", "torch")
    for config, encoder in (("cpu", "encoder"), ("cuda", "match_encoder"), (None, "match_encoder")):
        served = served_repository(repository, DEFAULTS, workspace, config)
        assert encoders(served, "match") == [encoder]


def test_a_matcher_of_another_captioner(repository: Path, workspace: Workspace) -> None:
    """It is left out with all that needs it, also at a restart, and one sentence says why."""
    built(repository, "decoder")
    built(repository, "encoder")
    built(repository, "matcher", "encoder")
    served = served_repository(repository, OptionDefaults(), workspace)
    assert (served / "rerank").exists()
    assert why_not_matching(repository, None) == ""
    replace(CONFIG, checkpoint="y", vision=replace(CONFIG.vision, weights_hash="1")).save(
        repository / "encoder/1/artifact"
    )
    assert served_repository(repository, OptionDefaults(), workspace) == served
    assert {path.name for path in served.iterdir()} == CAPTIONING
    assert why_not_matching(repository, None) == (
        f"matching was built from x@0 to share a captioner's encoder, and {repository} has that of y@0 now: "
        "build x again"
    )


def test_matching_keeps_an_encoder_that_is_shared(repository: Path, workspace: Workspace) -> None:
    built(repository, "encoder")
    built(repository, "matcher", "encoder")
    served = served_repository(repository, OptionDefaults(), workspace)
    assert {path.name for path in served.iterdir()} == {"preprocess", "encoder", *MATCHING} - {"match_encoder"}


def test_a_broken_captioner_is_not_left_out(repository: Path, workspace: Workspace) -> None:
    """Its models say what is wrong."""
    built(repository, "matcher", "match_encoder")
    (repository / "decoder/1/artifact").mkdir(parents=True)
    (repository / "decoder/1/artifact/config.json").write_text("{")
    assert "caption" in {path.name for path in served_repository(repository, OptionDefaults(), workspace).iterdir()}


def test_configs_say_the_defaults_and_nothing_else_differs(repository: Path, workspace: Workspace) -> None:
    served = served_repository(repository, DEFAULTS, workspace)
    assert {path.name for path in served.iterdir()} == CAPTIONING
    configs = sorted(
        path.relative_to(repository) for model in CAPTIONING for path in repository.glob(f"{model}/**/*.pbtxt")
    )
    for name in configs:
        config, original = parse(served / name), parse(repository / name)
        if name.parts[0] in TAKE_OPTIONS:
            parameters = {
                key: json.loads(config.parameters.pop(key).string_value) for key in ("option_defaults", "fixed_options")
            }
            assert parameters == {"option_defaults": DEFAULTS.values, "fixed_options": {"max_tokens": 20}}
        assert config == original
    for path in (path for model in CAPTIONING for path in repository.glob(f"{model}/1/model.py")):
        assert (served / path.relative_to(repository)).samefile(path)


def test_a_restart_writes_only_what_changed(repository: Path, workspace: Workspace) -> None:
    served = served_repository(repository, DEFAULTS, workspace)
    caption, decoder = served / "caption/config.pbtxt", served / "decoder/config.pbtxt"
    before = caption.stat().st_mtime_ns
    with (repository / "decoder/config.pbtxt").open("a") as file:
        file.write("# built again\n")
    assert served_repository(repository, DEFAULTS, workspace) == served
    assert caption.stat().st_mtime_ns == before
    assert "# built again" in decoder.read_text()


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ({}, {"num_beams": 3}),
        ({"max_tokens": 9}, {"num_beams": 3, "max_tokens": 9}),
        ({"do_sample": True}, {"do_sample": True}),
    ],
)
def test_a_checkpoints_defaults(
    artifacts: Path, tmp_path: Path, operator: dict[str, Any], expected: dict[str, Any]
) -> None:
    folder = tmp_path / "decoder/1/artifact"
    folder.mkdir(parents=True)
    config = json.loads((artifacts / "decoder/1/artifact/config.json").read_text())
    assert effective(OptionDefaults(operator), tmp_path).values == operator
    (folder / "config.json").write_text(json.dumps(config | {"option_defaults": {"num_beams": 3}}))
    assert effective(OptionDefaults(operator), tmp_path).values == expected
    del config["option_defaults"]  # as 0.2.0 wrote it
    (folder / "config.json").write_text(json.dumps(config))
    assert effective(OptionDefaults(operator), tmp_path).values == operator


def test_where_a_default_was_set() -> None:
    """It is said if it is not allowed."""
    sources = over(from_operator(["max_tokens=9"]), {"num_beams": 3, "max_tokens": 7}).sources
    assert sources == {"num_beams": "generation_config.json num_beams=3", "max_tokens": "--default max_tokens=9"}


def test_defaults_that_need_more_positions_than_the_decoder_has(artifacts: Path) -> None:
    """Else the models would say so, one by one, once Triton has started."""
    for given in ("max_tokens=65", f"max_tokens={10**11}"):
        told = rf"^these defaults are not allowed with emoji-demo@\w+: .* 64 positions.* \(--default {given}\)$"
        with pytest.raises(ServerError, match=told):
            effective(from_operator([given]), artifacts)
    assert effective(OptionDefaults({"max_tokens": 64}), artifacts).values == {"max_tokens": 64}


def test_a_default_adapter_must_be_there(repository: Path) -> None:
    defaults = from_operator(["adapter=fr"])
    check_adapter(defaults, repository)  # it has no captioner: its models say so
    built(repository, "decoder")
    check_adapter(OptionDefaults(), repository)
    with pytest.raises(ServerError, match=r"--default adapter=.fr.: there is no adapter 'fr': this server has none"):
        check_adapter(defaults, repository)
    folder = repository / "decoder/1" / FOLDER_NAME / "fr"
    folder.mkdir(parents=True)
    AdapterConfig("x", "0", "1").save(folder)
    check_adapter(defaults, repository)


def test_adapters_are_seen_as_they_come(repository: Path, workspace: Workspace) -> None:
    """The models that look for them are links, with defaults, too."""
    built(repository, "decoder")
    served = [served_repository(repository, defaults, workspace) for defaults in (OptionDefaults(), DEFAULTS)]
    folder = repository / "decoder/1" / FOLDER_NAME
    folder.mkdir()
    assert all((each / "decoder/1" / FOLDER_NAME).samefile(folder) for each in served)


def test_a_calibration_comes_and_goes_between_starts(repository: Path, workspace: Workspace) -> None:
    """The repository's own configs stay as they are."""
    built(repository, "matcher", "match_encoder")
    version = repository / "matcher/1"
    for calibration, expected in ((None, {}), (Calibration("x@0", "0", 1.5, 0.25), SAID), (None, {})):
        if calibration:
            calibration.save(version)
        else:
            (version / CALIBRATION).unlink(missing_ok=True)
        served = served_repository(repository, OptionDefaults(), workspace)
        for model in MATCHING:
            parameters = parse(served / model / "config.pbtxt").parameters
            found = {key: parameters[key].string_value for key in SAID if key in parameters}
            assert found == (expected if model in {"match", "explain_match", "matcher"} else {})
            assert "threshold" not in parse(repository / model / "config.pbtxt").parameters
        assert (served / "matcher/1").samefile(version)


def test_which_checkpoint_matches(repository: Path, workspace: Workspace) -> None:
    """So that whoever stores embeddings knows, whatever captioner stands beside it."""
    built(repository, "decoder")
    built(repository, "matcher", "match_encoder")
    served = served_repository(repository, OptionDefaults(), workspace)
    for model in ("match", "matcher"):
        assert parse(served / model / "config.pbtxt").parameters["checkpoint"].string_value == "x@0"
    assert parse(served / "matcher/configs/cpu.pbtxt").parameters["dtype"].string_value == "f32"
    assert parse(served / "matcher/config.pbtxt").parameters["dtype"].string_value == "f32"
    assert "checkpoint" not in parse(served / "caption/config.pbtxt").parameters


@pytest.mark.parametrize(
    ("config", "runtime", "path", "expected"),
    [
        ("cpu", "openvino", "configs/cpu.pbtxt", {"auto": resolve("auto", "cpu"), "f32": "f32", "f16": None}),
        ("cuda", "torch", "config.pbtxt", {"auto": "f16", "f32": "f32", "f16": "f16"}),
    ],
)
def test_what_the_matcher_computes_in(
    repository: Path, workspace: Workspace, config: str, runtime: str, path: str, expected: dict[DType, str | None]
) -> None:
    folder = repository / "matcher/1" / runtime
    folder.mkdir(parents=True)
    for dtype, told in expected.items():
        replace(CONFIG, dtype=dtype, matching=MatchConfig(2, 3, 256, "match_encoder")).save(folder)
        served = served_repository(repository, OptionDefaults(), workspace, config)
        parameters = parse(served / "matcher" / path).parameters
        assert (parameters["dtype"].string_value if "dtype" in parameters else None) == told


def test_a_broken_calibration_is_left_to_its_model(repository: Path, workspace: Workspace) -> None:
    built(repository, "matcher", "match_encoder")
    (repository / "matcher/1" / CALIBRATION).write_text("{")
    served_repository(repository, OptionDefaults(), workspace)
