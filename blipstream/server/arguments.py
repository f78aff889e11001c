# SPDX-License-Identifier: Apache-2.0
"""tritonserver's command line."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from blipstream.server.served_repository import served_repository
from blipstream.serving.telemetry import SERVICE

if TYPE_CHECKING:
    from blipstream.server.installation import Installation
    from blipstream.server.triton import TritonServer
    from blipstream.server.workspace import Workspace

# All APIs that read or change more than captions: shared memory, files that logs and traces go to, models.
ADMIN_APIS = "shared-memory,model-repository,trace,logging"
# Of each GPU's memory, for tensors on their way between models. Triton's default is 64 MiB, and a batch of 64 images of
# base has 57 MB of embeddings, which is copied once more; what does not fit goes through the host
CUDA_POOL_BYTES = 2**30
ADMIN_HEADER = "blipstream-admin"  # over gRPC: triton-grpc-protocol-blipstream-admin


def command_line(server: "TritonServer", installation: "Installation", workspace: "Workspace") -> list[str]:
    """The program and its arguments, for a server whose ports are chosen."""
    restriction = f"{ADMIN_APIS}:{ADMIN_HEADER}={server.admin_key}"
    options: dict[str, object] = {
        "model-repository": served_repository(server.repository, server.effective_defaults, workspace, server.config),
        "model-control-mode": "none",
        "exit-on-error": "true",
        "strict-readiness": "true",
        "exit-timeout-secs": server.exit_timeout,
        "http-address": server.http_host,
        "http-port": server.http_port,
        "grpc-address": server.host,
        "grpc-port": server.grpc_port,
        "metrics-address": server.host,
        "metrics-port": server.metrics_port,
        "metrics-config": "summary_latencies=true",
        "backend-config": f"python,shm-region-prefix-name={workspace.regions}",
        "http-restricted-api": restriction,
        "grpc-restricted-protocol": restriction,
    }
    if server.config:
        options["model-config-name"] = server.config
    if checkpoint := served_checkpoint(server.repository):
        options["id"] = checkpoint  # clients see it as the server's name
    if server.verbose:
        options["log-verbose"] = server.verbose
    if server.tls:
        options |= server.tls.options
    if installation.caches:
        options["cache-directory"] = installation.caches
    if installation.python_backend:
        links = [workspace.link(file, "backends", "python", file.name) for file in installation.python_backend]
        options["backend-directory"] = links[0].parents[1]
    gpus = count_gpus()
    if not gpus:
        options["allow-gpu-metrics"] = "false"
    given = [f"--{name}={value}" for name, value in options.items()]
    given += [f"--cuda-memory-pool-byte-size={gpu}:{CUDA_POOL_BYTES}" for gpu in range(gpus)]
    # Without this switch Triton loads each model twice, first to ask it what its configuration lacks.
    return [str(installation.binary), "--disable-auto-complete-config", *given, *_trace_options(server)]


def count_gpus() -> int:
    """NVIDIA's GPUs in this machine, or those that this container was given."""
    return len([*Path("/dev").glob("nvidia[0-9]*")])


def _trace_options(server: "TritonServer") -> list[str]:
    """Triton's own spans, one for each model of a request, with its time in the queue."""
    if not server.traces:
        return []
    settings = ["mode=opentelemetry", "level=TIMESTAMPS", f"rate={server.trace_every}"]
    settings += [f"opentelemetry,url={server.traces}", f"opentelemetry,resource=service.name={SERVICE}"]
    return [f"--trace-config={setting}" for setting in settings]


def served_checkpoint(repository: Path) -> str | None:
    """NAME@REVISION of the checkpoint that is served, if its artifacts say so. A captioner comes before matching."""
    files = [repository / "decoder/1/artifact/config.json", *sorted(repository.glob("matcher/1/*/config.json"))]
    for file in files:
        with suppress(OSError, ValueError, LookupError, TypeError):
            config = json.loads(file.read_text(encoding="utf-8"))
            return f"{config['checkpoint']}@{config['revision']}"
    return None
