# SPDX-License-Identifier: Apache-2.0
"""docker-compose.yml and .env.example, against the schema and against the programs that they start."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from blipstream.server import command as serve
from blipstream_build import command as build_command
from tests.conftest import ROOT
from tests.support.deployment import COMPOSE, VARIABLE, compose, compose_variables, dockerfile, load_yaml
from tests.support.documents import text_of

BIN = Path(sys.executable).parent
YAMLLINT = "{extends: default, rules: {document-start: disable, line-length: {max: 120}}}"
SERVICES: dict[str, Any] = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
STAGES = {each.stage for each in dockerfile()}
GRPC_TLS = ROOT / "deploy" / "grpc-tls.yml"
PAGES = text_of("README.md", "docs")


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def default_of(command: click.Command, name: str) -> Any:
    return next(param.default for param in command.params if param.name == name)


def options(command: click.Command, arguments: list[str]) -> dict[str, Any]:
    """The options that a command reads from its arguments. Raises click.NoSuchOption."""
    given, rest, _ = command.make_parser(click.Context(command, **command.context_settings)).parse_args(list(arguments))
    assert not rest
    return dict(given)


def variables_of(command: click.Command) -> set[str]:
    """The environment variables that stand for options."""
    prefix = command.context_settings.get("auto_envvar_prefix")
    own = {param.envvar for param in command.params if isinstance(param.envvar, str)}
    return own | ({f"{prefix}_{param.name}".upper() for param in command.params} if prefix else set())


def test_schema() -> None:
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE, GRPC_TLS)


def test_style() -> None:
    run(BIN / "yamllint", "--strict", "-d", YAMLLINT, COMPOSE, ROOT / "deploy")


def test_every_setting_is_in_the_example_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert compose_variables() == {name: {default} for name, default in example.items()}
    others = re.sub(r"#.*|\$\$", "", VARIABLE.sub("", COMPOSE.read_text()))
    assert "$" not in others, "a variable without a default"


def test_defaults_are_those_of_the_programs() -> None:
    (makefile_checkpoint,) = re.findall(r"^CHECKPOINT \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert (
        compose_variables()
        | {
            "CHECKPOINT": {makefile_checkpoint},
            "DTYPE": {default_of(build_command.main, "dtype")},
            "HTTP_PORT": {str(default_of(serve.main, "http_port"))},
            "GRPC_PORT": {str(default_of(serve.main, "grpc_port"))},
            "METRICS_PORT": {str(default_of(serve.main, "metrics_port"))},
        }
        == compose_variables()
    )


@pytest.mark.parametrize("name", ["builder", "builder-cpu"])
def test_builder(name: str) -> None:
    python, module, target, *arguments = SERVICES[name]["command"]
    assert (python, module, target) == ("python", "-m", "blipstream_build")
    given = options(build_command.main, arguments)
    assert f"models:{given['repository']}" in SERVICES[name]["volumes"]


@pytest.mark.parametrize("name", ["triton", "triton-cpu"])
def test_server(name: str) -> None:
    service = SERVICES[name]
    python, module, target, *arguments = service["command"]
    assert (python, module, target) == ("python", "-m", "blipstream.server")
    assert set(service["environment"]) <= variables_of(serve.main)
    given = options(serve.main, arguments)
    assert given["host"] == "0.0.0.0"  # noqa: S104
    assert f"models:{given['repository']}:ro" in service["volumes"]
    assert given["admin_key_file"] == f"/run/secrets/{service['secrets'][0]}"
    ports = [default_of(serve.main, port) for port in ("http_port", "grpc_port", "metrics_port")]
    ports.append(ports[-1] + 1)  # its health port
    assert [int(mapping.split(":")[-1]) for mapping in service["ports"]] == ports
    builder = name.replace("triton", "builder")
    assert service["depends_on"] == {builder: {"condition": "service_completed_successfully"}}
    assert SERVICES[builder]["image"] == service["image"]


def test_triton_may_end_tls() -> None:
    """The server knows the settings, and the services name the files as secrets."""
    override = load_yaml(GRPC_TLS.read_text())
    assert set(override["services"]) == {"triton", "triton-cpu"}
    secrets = compose()["secrets"] | override["secrets"]
    for service in override["services"].values():
        assert set(service["environment"]) <= variables_of(serve.main)
        files = [re.sub(r"^\$\{\w+:\+(.*)\}$", r"\1", value) for value in service["environment"].values()]
        assert files == [f"/run/secrets/{secret}" for secret in service["secrets"]]
        assert set(service["secrets"]) <= set(secrets)


def test_by_default_the_administrative_apis_are_closed() -> None:
    key = ROOT / compose()["secrets"]["admin_key"]["file"]
    assert key.read_text() == ""


@pytest.mark.parametrize("command", [serve.main, build_command.main], ids=["serve", "build"])
def test_images_tell_the_configuration(command: click.Command) -> None:
    environments = [each.rest for each in dockerfile() if each.keyword == "ENV" and each.stage.startswith("base-")]
    variables = {each.partition("=")[0] for each in environments}
    assert variables <= variables_of(command)
    assert [each.partition("=")[2] for each in environments] == ["tensorrt", "cpu"]


def test_the_gpu_is_reserved_for_what_runs_without_a_profile() -> None:
    reserving = {
        name: service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"]
        for name, service in SERVICES.items()
        if "resources" in service.get("deploy", {})
    }
    assert reserving == {"builder": ["gpu"], "triton": ["gpu"]}
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == set(reserving)


@pytest.mark.parametrize("name", SERVICES)
def test_containers_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert service["logging"]["options"].keys() == {
        "max-size",
        "max-file",
    }  # without a bound, strangers could fill the disk


def mounted_files() -> Iterator[Path]:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            if volume.startswith("."):
                yield ROOT / volume.split(":")[0]


def test_mounted_files_are_there() -> None:
    assert all(path.exists() for path in mounted_files())
    named = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {name for name in named if not name.startswith(".")} == set(compose()["volumes"])


@pytest.mark.parametrize("name", OURS)
def test_images_are_those_of_the_dockerfile(name: str) -> None:
    build = OURS[name]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    assert build.get("target", "server") in STAGES
    runtime = build.get("args", {}).get("RUNTIME", "gpu")
    assert {f"base-{runtime}", f"packages-{runtime}"} <= STAGES


def test_load_test() -> None:
    """Locust asks the name that both servers have, on the port where they listen."""
    assert SERVICES["triton-cpu"]["networks"]["default"]["aliases"] == ["triton"]
    port = default_of(serve.main, "grpc_port")
    assert f"--host=grpc://triton:{port}" in SERVICES["locust-master"]["command"]
    assert "--master-host=locust-master" in SERVICES["locust-worker"]["command"]


def test_proxy() -> None:
    """nginx reads the files that compose gives it, writes where it may, and listens where compose forwards to."""
    service, config = SERVICES["nginx"], (ROOT / "deploy/nginx/nginx.conf").read_text()
    assert {f"/run/secrets/{name}" for name in service["secrets"]} == set(re.findall(r"/run/secrets/\w+", config))
    assert set(service["secrets"]) <= set(compose()["secrets"])
    (port,) = re.findall(r"listen (\d+)", config)
    assert [mapping.split(":")[-1] for mapping in service["ports"]] == [port]
    written = re.findall(r"(?:pid|temp_path) (\S+);", config)
    (folder,) = (each.partition(":")[0] for each in service["tmpfs"])
    assert all(path.startswith(f"{folder}/") for path in written)
    upstreams = {f"triton:{default_of(serve.main, name)}" for name in ("http_port", "grpc_port")}
    assert set(re.findall(r"server (\S+:\d+);", config)) == upstreams


@pytest.mark.parametrize("command", re.findall(r"docker compose (.*up[^#\n`]*)", PAGES))
def test_documented_commands(command: str) -> None:
    """The services and profiles in the documents' commands exist."""
    words = command.split()
    profiles = {words[index + 1] for index, word in enumerate(words) if word == "--profile"}
    names = [word for word in words[words.index("up") + 1 :] if not word.startswith("--")]
    assert profiles <= {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
    assert set(names) <= set(SERVICES)


def test_documented_settings() -> None:
    known = compose_variables().keys() | set(re.findall(r"\$\{([A-Z_]+)", GRPC_TLS.read_text()))
    for assignments in re.findall(r"^\s*((?:[A-Z_]+=\S+ )+)docker compose", PAGES, re.MULTILINE):
        assert {each.split("=")[0] for each in assignments.split()} <= known
