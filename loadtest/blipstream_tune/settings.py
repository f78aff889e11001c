# SPDX-License-Identifier: Apache-2.0
"""The batching settings of the models, read from and written to their configurations."""

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

VARIANT = "tuned"
SPACE: dict[str, list[int]] = {  # the values to try, with the most influential setting first
    "decoder.max_queue_delay_us": [0, 1000, 2000, 5000, 10000],
    "encoder.preferred_batch": [0, 4, 8, 16],  # 0: no preference
    "encoder.max_queue_delay_us": [0, 1000, 2000, 5000, 10000],
    "preprocess.instances": [1, 2, 4],
    "decoder.instances": [1, 2],
    "encoder.instances": [1, 2],
}

Settings = dict[str, int]


class TuneError(Exception):
    """There is no result; the text is one sentence."""


def config_path(repository: Path, model: str, config: str) -> Path:
    """The file from which Triton reads a model's configuration."""
    variant = repository / model / "configs" / f"{config}.pbtxt"
    return variant if variant.exists() else repository / model / "config.pbtxt"


def read_config(repository: Path, model: str, config: str) -> Any:  # noqa: ANN401
    """Parse a model's configuration. Raises TuneError."""
    path = config_path(repository, model, config)
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as exc:
        raise TuneError(f"{path} is no configuration of a model: {' '.join(str(exc).split())}") from exc


def read_settings(repository: Path, config: str) -> Settings:
    """Read the settings from a configuration. Raises TuneError."""
    settings = {}
    for name in SPACE:
        model, _, setting = name.partition(".")
        found = read_config(repository, model, config)
        match setting:
            case "instances":
                settings[name] = sum(group.count for group in found.instance_group) or 1
            case "max_queue_delay_us":
                settings[name] = int(found.dynamic_batching.max_queue_delay_microseconds)
            case _:
                settings[name] = int(max(found.dynamic_batching.preferred_batch_size, default=0))
    return settings


def write_settings(repository: Path, config: str, settings: Settings) -> None:
    """Write configs/tuned.pbtxt for each model with a setting, or with a configs/`config`.pbtxt. Raises TuneError."""
    models = {name.partition(".")[0] for name in SPACE}
    models |= {path.parent.parent.name for path in repository.glob(f"*/configs/{config}.pbtxt")}
    for model in models:
        chosen = read_config(repository, model, config)
        for name, value in settings.items():
            owner, _, setting = name.partition(".")
            if owner == model:
                _set(chosen, setting, value)
        folder = repository / model / "configs"
        folder.mkdir(exist_ok=True)
        (folder / f"{VARIANT}.pbtxt").write_text(
            f"# from {config}, by blipstream tune\n{text_format.MessageToString(chosen)}", encoding="utf-8"
        )


def _set(config: Any, setting: str, value: int) -> None:  # noqa: ANN401
    match setting:
        case "instances":
            del config.instance_group[1:]
            config.instance_group[0].count = value
        case "max_queue_delay_us":
            config.dynamic_batching.max_queue_delay_microseconds = value
        case _:
            config.dynamic_batching.preferred_batch_size[:] = [value] if value else []


def changes(settings: Settings, start: Settings) -> list[str]:
    """What differs from the start, a setting each."""
    return [f"{name} {start[name]} -> {value}" for name, value in settings.items() if value != start[name]]
