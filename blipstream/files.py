# SPDX-License-Identifier: Apache-2.0
"""The files that travel with the code: a checkout has them in folders of its own, a wheel in this package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_SHARE = PACKAGE / "share"  # only a wheel has it; pyproject.toml says what goes there
ROOT = _SHARE if _SHARE.is_dir() else PACKAGE.parent

MODEL_REPOSITORY = ROOT / "model_repository"  # configs and model.py files; a checkout may have artifacts there, too
DEMO_CHECKPOINT = ROOT / "build" / "demo" / "checkpoint"
DEMO_NAME = "emoji-demo"  # what a server that has it says of its checkpoint
DEMO_RETRIEVAL_CHECKPOINT = ROOT / "build" / "demo" / "retrieval-checkpoint"  # which matches texts to its scenes
DEMO_ADAPTERS = ROOT / "build" / "demo" / "adapters"  # a folder of PEFT's for each language that it learnt
SAMPLES = ROOT / "build" / "demo" / "samples"  # JPEG files, and captions.json with the right caption of each
PROMETHEUS = ROOT / "deploy" / "prometheus"  # its jobs, its rules, and the page to which alerts link
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
NGINX = ROOT / "deploy" / "nginx"  # the proxy's configuration, and the check of its keys
