# SPDX-License-Identifier: Apache-2.0
"""The model repository as Triton gets it: links to the one that is served, and configs that say the defaults."""

import json
import re
from pathlib import Path

from blipstream.config import CheckpointConfig
from blipstream.defaults import over, to_parameters
from blipstream.errors import ArtifactError, InvalidInput, ServerError
from blipstream.options import OptionDefaults
from blipstream.server.workspace import Workspace

PLAIN, WITH_DEFAULTS = "models", "models-with-defaults"  # in a server's folder
TAKES_OPTIONS = re.compile(r'name: "max_tokens"')  # in a model's config


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


def served_repository(repository: Path, defaults: OptionDefaults, workspace: Workspace) -> Path:
    """A folder in the workspace that shows the repository, with the defaults in the models' configs.

    At a restart it is made up to date. What has not changed is not written, for the disk may be full.
    """
    parameters = to_parameters(defaults)
    if not parameters:
        return workspace.link(repository, PLAIN)
    added = "".join(
        f'\nparameters {{ key: "{name}" value {{ string_value: {json.dumps(value)} }} }}'
        for name, value in parameters.items()
    )
    for model in sorted(repository.iterdir()):
        configs = [path for name in ("config.pbtxt", "configs/*.pbtxt") for path in sorted(model.glob(name))]
        texts = {path: path.read_text(encoding="utf-8") for path in configs}
        if not any(map(TAKES_OPTIONS.search, texts.values())):
            workspace.link(model, WITH_DEFAULTS, model.name)
            continue
        for entry in model.iterdir():
            if entry not in texts and entry.name != "configs":
                workspace.link(entry, WITH_DEFAULTS, model.name, entry.name)
        for path, text in texts.items():
            workspace.write(text + added + "\n", WITH_DEFAULTS, *path.relative_to(repository).parts)
    return workspace.folder / WITH_DEFAULTS
