# SPDX-License-Identifier: Apache-2.0
"""The model repository as Triton gets it: links to the models that are served, and configs that say the defaults."""

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from blipstream.adapters import FOLDER_NAME, find_adapter
from blipstream.calibration import Calibration
from blipstream.config import (
    ARTIFACTS,
    CONFIG_NAME,
    MATCHING,
    MATCHING_ARTIFACTS,
    CheckpointConfig,
    misfit,
    readable_configs,
)
from blipstream.defaults import over, to_parameters
from blipstream.dtypes import resolve
from blipstream.errors import ArtifactError, InvalidInput, ServerError
from blipstream.options import ADAPTER, OptionDefaults
from blipstream.server.workspace import Workspace

PLAIN, WITH_DEFAULTS = "models", "models-with-defaults"  # in a server's folder
# In a model's config. explain_match takes only resize_mode, whose default says how heatmaps lie on the image
TAKES_OPTIONS = re.compile(r'name: "(num_captions|explain_match)"')
OF_MATCHING = re.compile(r'name: "(match|embedding)"\s+data_type')  # in a model's config
GIVES_MATCH = re.compile(r'name: "match"\s+data_type')  # in a model's config
RUNTIME = re.compile(r'key: "runtime" value { string_value: "(\w+)" }')  # in a model's config
MATCHER_ON = {  # a device, in the config of `matcher`
    "cpu": re.compile(r'name: "matcher"\n.*KIND_CPU', re.DOTALL),
    "cuda": re.compile(r'name: "matcher"\n.*KIND_GPU', re.DOTALL),
}
OWN_ENCODER = 'model_name: "match_encoder"'  # in an ensemble's
ITS_PIXELS = re.compile(r'.*key: "match_pixels".*\n')  # where the decoder passes them on to that one
SECOND_ENCODER = re.compile(rf"    {{\n      {OWN_ENCODER}\n.*?\n    }},\n", re.DOTALL)  # the whole step
NEED_BOTH = ("rerank",)  # models that need a captioner and a retrieval checkpoint


def effective(operator: OptionDefaults, repository: Path) -> OptionDefaults:
    """The operator's defaults over those of the checkpoint in the repository.

    Raises ServerError if they need more positions than its text decoder has.
    """
    try:
        checkpoint = CheckpointConfig.load(repository / "decoder/1/artifact")
    except ArtifactError:  # its model says so when it loads
        return operator
    defaults = over(operator, checkpoint.option_defaults)
    try:
        defaults.check_fits(checkpoint.text.max_positions)
    except InvalidInput as error:
        set_by = " and ".join(defaults.sources[name] for name in ("prompt", "max_tokens") if name in defaults.sources)
        raise ServerError(
            f"these defaults are not allowed with {checkpoint.origin}: {error}" + (f" ({set_by})" if set_by else "")
        ) from error
    return defaults


def check_adapter(defaults: OptionDefaults, repository: Path) -> None:
    """Raise ServerError if the default of `adapter` is none that the repository has."""
    if not (name := defaults.values.get(ADAPTER)):
        return
    with suppress(ArtifactError):  # its model says so when it loads
        checkpoint = CheckpointConfig.load(repository / "decoder/1/artifact")
        try:
            find_adapter(repository / "decoder/1" / FOLDER_NAME, name, checkpoint)
        except InvalidInput as error:
            raise ServerError(f"{defaults.sources.get(ADAPTER, ADAPTER)}: {error}") from error


def served_repository(
    repository: Path, defaults: OptionDefaults, workspace: Workspace, config: str | None = None
) -> Path:
    """A folder in the workspace that shows what is to be served of the repository, in a configuration of that name.

    Models whose checkpoint has not been built are left out, and matching if it belongs to another captioner. The
    configs say the defaults, and matching's checkpoint, dtype and calibration. Where matching shares the captioner's
    encoder, they name that one. At a restart the folder is made up to date. What has not changed is not written, for
    the disk may be full.
    """
    parameters = to_parameters(defaults)
    matcher = next(iter(_matchers(repository, config)), None)
    added = {
        TAKES_OPTIONS: _in_config(parameters),
        OF_MATCHING: _in_config(_checkpoint(matcher)),
        GIVES_MATCH: _in_config(_calibration(repository)),
        **{pattern: _in_config(_dtype(matcher, device)) for device, pattern in MATCHER_ON.items()},
    }
    absent, encoder = left_out(repository, config), match_encoder(repository, config)
    name = WITH_DEFAULTS if parameters else PLAIN
    for model in sorted(repository.iterdir()):
        place = workspace.folder / name / model.name
        if model.name in absent:
            _clear(place)
            continue
        configs = [path for pattern in ("config.pbtxt", "configs/*.pbtxt") for path in sorted(model.glob(pattern))]
        texts = {path: path.read_text(encoding="utf-8") for path in configs}
        changed = {
            path: _with_encoder(text, encoder)
            + "".join(more for pattern, more in added.items() if pattern.search(text))
            for path, text in texts.items()
        }
        if place.is_symlink() != (changed == texts):  # the encoder or the calibration is another one by now
            _clear(place)
        if changed == texts:
            workspace.link(model, name, model.name)
            continue
        for entry in model.iterdir():
            if entry not in texts and entry.name != "configs":
                workspace.link(entry, name, model.name, entry.name)
        for path, text in changed.items():
            workspace.write(text, name, *path.relative_to(repository).parts)
    return workspace.folder / name


def captions(repository: Path, config: str | None = None) -> bool:
    """Whether the repository has a captioner. One that has nothing is taken for it: its models say what is missing."""
    return _is_built(repository, "decoder") or not matches(repository, config)


def matches(repository: Path, config: str | None = None) -> bool:
    """Whether the repository has a retrieval checkpoint that can be served in a configuration of that name."""
    return _is_built(repository, "matcher") and not why_not_matching(repository, config)


def why_not_matching(repository: Path, config: str | None) -> str:
    """Why matching is not served, although it is built; empty if it is served, or has not been built."""
    return next(filter(None, (misfit(each, repository) for each in _matchers(repository, config))), "")


def match_encoder(repository: Path, config: str | None) -> str:
    """The model that gives matching its image_embeds: the captioner's encoder, if it is the same in that runtime."""
    return next((each.match_config.encoder for each in _matchers(repository, config)), "match_encoder")


def _matchers(repository: Path, config: str | None) -> list[CheckpointConfig]:
    """What the matcher was built from that a configuration has; of a runtime that is not told, all."""
    matcher = repository / "matcher"
    named = matcher / f"configs/{config}.pbtxt"
    settings = named if named.exists() else matcher / "config.pbtxt"  # as Triton chooses
    runtime = RUNTIME.search(settings.read_text(encoding="utf-8")) if settings.exists() else None
    artifacts = readable_configs(matcher / "1", runtime[1] if runtime else MATCHING_ARTIFACTS["matcher"])
    return [each for each in artifacts if each.matching]


def left_out(repository: Path, config: str | None) -> set[str]:
    """The names of models that need a checkpoint that the repository has not, or an encoder that is shared."""
    names, encoder = {model.name for model in repository.iterdir()}, match_encoder(repository, config)
    absent = set() if captions(repository, config) else names - {"preprocess", encoder, *MATCHING}
    if not matches(repository, config):
        absent |= {*MATCHING, *NEED_BOTH}
    elif encoder != "match_encoder":
        absent.add("match_encoder")
    return absent


def _clear(place: Path) -> None:
    """Remove what stands for a model. What it links to stays."""
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)


def _with_encoder(text: str, encoder: str) -> str:
    """An ensemble's config in which `encoder` gives matching its image_embeds, once for each image."""
    shared = f'model_name: "{encoder}"'
    if shared in text and shared != OWN_ENCODER:
        once = ITS_PIXELS.sub("", SECOND_ENCODER.sub("", text))
        return once.replace('"match_image_embeds"', '"image_embeds"')
    return text.replace(OWN_ENCODER, shared)


def _checkpoint(matcher: CheckpointConfig | None) -> dict[str, str]:
    """How the configs say which retrieval checkpoint there is."""
    return {"checkpoint": f"{matcher.checkpoint}@{matcher.revision}"} if matcher else {}


def _dtype(matcher: CheckpointConfig | None, device: str) -> dict[str, str]:
    """How the matcher's config says what it computes in. If the device lacks that, the model says so."""
    with suppress(ArtifactError):
        return {"dtype": resolve(matcher.dtype, device)} if matcher else {}
    return {}


def _calibration(repository: Path) -> dict[str, str]:
    """How the configs say matching's calibration; nothing if there is none. If it is broken, its model says so."""
    with suppress(ArtifactError):
        if calibration := Calibration.load(repository / "matcher/1"):
            return {"temperature": str(calibration.temperature), "threshold": str(calibration.threshold)}
    return {}


def _in_config(parameters: Mapping[str, str]) -> str:
    """Parameters as the text of a model's config."""
    return "".join(
        f'\nparameters {{ key: "{name}" value {{ string_value: {json.dumps(value)} }} }}\n'
        for name, value in parameters.items()
    )


def _is_built(repository: Path, model: str) -> bool:
    """Whether a model has an artifact. If it is broken, the model says so when it loads."""
    artifacts = (ARTIFACTS | MATCHING_ARTIFACTS)[model]
    return any((repository / model / "1").glob(f"{artifacts}/{CONFIG_NAME}"))
