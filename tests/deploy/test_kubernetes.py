# SPDX-License-Identifier: Apache-2.0
"""deploy/kubernetes as Kustomize reads it, against the schemas, the programs that it starts and docker-compose.yml."""

import re
import shlex
import shutil
import subprocess
from http import HTTPStatus
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
from ruamel.yaml import YAML

import blipstream_client._base
from blipstream import serve
from blipstream.health import Health
from blipstream.server import GRACE_SECONDS, TritonServer
from tests.conftest import ROOT
from tests.deploy.files import compose, dockerfile, load_yaml

FOLDER = ROOT / "deploy" / "kubernetes"
README = (ROOT / "deploy" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
OLDEST, NEWEST = "1.27", "1.37"  # whose schemas the manifests keep; the README names the first
OPERATORS_OWN = "monitoring.coreos.com/v1"
SERVICES: dict[str, Any] = compose()["services"]
DEFAULTS: dict[str | None, Any] = {param.name: param.default for param in serve.main.params}
METRICS_PORT: int = DEFAULTS["metrics_port"]
PORTS = {
    "http": DEFAULTS["http_port"],
    "grpc": DEFAULTS["grpc_port"],
    "metrics": METRICS_PORT,
    "health": METRICS_PORT + 1,
}

Objects = dict[str, dict[str, Any]]  # by kind and name


def load_all(path: Path) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(path))


def by_name(objects: list[dict[str, Any]]) -> Objects:
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}


def patch(target: Any, operation: dict[str, Any]) -> None:
    """Apply an operation `add` of JSON Patch to a path without escapes."""
    assert operation["op"] == "add"
    *parents, last = operation["path"].split("/")[1:]
    for key in parents:
        target = target[int(key) if isinstance(target, list) else key]
    if isinstance(target, list):
        assert last == "-"
        target.append(operation["value"])
    else:
        target[last] = operation["value"]


def rename(pod: dict[str, Any], image: dict[str, str]) -> None:
    for container in pod["initContainers"] + pod["containers"]:
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def render(folder: Path, objects: Objects | None = None) -> Objects:
    """What `kubectl kustomize` prints, as far as these files go, but for the hashes that it adds to names."""
    objects = {} if objects is None else objects
    kustomization = load_yaml((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= {
        *("apiVersion", "kind", "resources", "components", "configMapGenerator", "images", "patches")
    }
    for name in kustomization.get("resources", []):
        path = folder / name
        objects |= render(path) if path.is_dir() else by_name(load_all(path))
    for each in kustomization.get("configMapGenerator", []):
        literals = dict(literal.split("=", 1) for literal in each["literals"])
        key = f"ConfigMap/{each['name']}"
        if each.get("behavior") == "merge":
            objects[key]["data"] |= literals
        else:
            metadata = {"name": each["name"]}
            objects[key] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": literals}
    for name in kustomization.get("components", []):
        render(folder / name, objects)
    for each in kustomization.get("patches", []):
        for operation in load_yaml((folder / each["path"]).read_text()):
            patch(objects[f"{each['target']['kind']}/{each['target']['name']}"], operation)
    for image in kustomization.get("images", []):
        rename(objects["Deployment/blipstream"]["spec"]["template"]["spec"], image)
    return objects


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's example of a cluster's own kustomization.yaml, beside a checkout."""
    folder = tmp_path_factory.mktemp("cluster")
    (example,) = (text for language, text in BLOCKS if language == "yaml" and "components:" in text)
    (folder / "kustomization.yaml").write_text(example)
    shutil.copytree(FOLDER, folder / "blipstream" / "deploy" / "kubernetes")
    return folder


@pytest.fixture(params=["gpu", "cpu", "readers"])
def rendered(request: pytest.FixtureRequest, readers: Path) -> tuple[Path, Objects]:
    folder = {"gpu": FOLDER, "cpu": FOLDER / "cpu", "readers": readers}[request.param]
    return folder, render(folder)


@pytest.fixture
def objects(rendered: tuple[Path, Objects]) -> Objects:
    return rendered[1]


@pytest.fixture
def pod(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = objects["Deployment/blipstream"]["spec"]["template"]["spec"]
    return found


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    return dict(found)


def arguments(container: dict[str, Any], objects: Objects) -> list[str]:
    """A container's, with the settings filled in."""
    assert container["envFrom"] == [{"configMapRef": {"name": "blipstream"}}]
    settings = objects["ConfigMap/blipstream"]["data"]
    return [re.sub(r"\$\((\w+)\)", lambda found: str(settings[found[1]]), each) for each in container["args"]]


def test_kustomize_renders_the_same(rendered: tuple[Path, Objects]) -> None:
    """Here, these tests render the files by themselves; so does kubectl, where there is one."""
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl here: kustomize was not asked what it makes of deploy/kubernetes")
    folder, objects = rendered
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = re.sub(r"\b(blipstream)-[bcdfghkmt2456789]{10}$", r"\1", done.stdout, flags=re.MULTILINE)
    assert by_name(list(YAML(typ="safe", pure=True).load_all(text))) == objects


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_schema(objects: Objects, version: str) -> None:
    for each in objects.values():
        if each["apiVersion"] != OPERATORS_OWN:
            assert kubernetes_validate.validate(each, version, strict=True) == version


def test_readme_names_the_oldest_kubernetes() -> None:
    assert f"Kubernetes {OLDEST} or newer" in README


@pytest.mark.parametrize("runtime", ["gpu", "cpu"])
def test_the_same_is_started_as_by_compose(runtime: str) -> None:
    objects = render(FOLDER if runtime == "gpu" else FOLDER / "cpu")
    pod = objects["Deployment/blipstream"]["spec"]["template"]["spec"]
    builder, triton = (SERVICES[name + ("-cpu" if runtime == "cpu" else "")] for name in ("builder", "triton"))
    (init,) = pod["initContainers"]
    assert init["image"] == container(pod)["image"] == triton["image"] == f"blipstream:{runtime}"
    assert arguments(init, objects) == builder["command"]
    _, _, _, _, *command = arguments(container(pod), objects)  # after sh -c SCRIPT sh
    assert command == [each for each in triton["command"] if not each.startswith("--admin-key-file=")]
    mounts = {each["name"]: each for each in container(pod)["volumeMounts"]}
    assert f"models:{mounts['models']['mountPath']}:ro" in triton["volumes"]
    assert mounts["models"]["readOnly"]
    assert [mounts["tmp"]["mountPath"]] == triton["tmpfs"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    shared = volumes[next(name for name, each in mounts.items() if each["mountPath"] == "/dev/shm")]  # noqa: S108
    assert shared["emptyDir"]["medium"] == "Memory"
    assert shared["emptyDir"]["sizeLimit"].lower() == triton["shm_size"].replace("gb", "gi")
    written = {f"{each['name']}:{each['mountPath']}" for each in init["volumeMounts"]}
    assert written == {volume for volume in builder["volumes"] if not volume.startswith(".")} | {"tmp:/tmp"}
    assert all("HF_TOKEN" in each["environment"] for each in (SERVICES["builder"], SERVICES["builder-cpu"]))
    assert [each["name"] for each in init["env"]] == ["HF_TOKEN"]
    assert "env" not in container(pod)


def test_containers_may_do_little(pod: dict[str, Any]) -> None:
    """The Pod Security Standard `restricted`, and a read-only file system."""
    user, group = next(each.rest for each in dockerfile() if (each.stage, each.keyword) == ("server", "USER")).split(
        ":"
    )
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(group),
        "fsGroup": int(group),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["automountServiceAccountToken"] is False
    assert not any(key.startswith("host") for key in pod)
    for each in pod["initContainers"] + pod["containers"]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert all(volume.keys() - {"name"} <= {"emptyDir", "secret"} for volume in pod["volumes"])
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for each in pod["initContainers"] + pod["containers"] for mount in each["volumeMounts"]
    }


def test_a_gpu_for_each_pod() -> None:
    def gpus(folder: Path) -> list[int]:
        pod = render(folder)["Deployment/blipstream"]["spec"]["template"]["spec"]
        resources = [each.get("resources", {}) for each in pod["initContainers"] + pod["containers"]]
        return [each.get("limits", {}).get("nvidia.com/gpu", 0) for each in resources]

    assert gpus(FOLDER) == [1, 1]  # the plan is compiled on a GPU, too
    assert gpus(FOLDER / "cpu") == [0, 0]


def test_by_default_the_administrative_apis_are_closed() -> None:
    objects = render(FOLDER)
    assert "--admin-key-file" not in str(objects)
    assert serve.read_admin_key(None) != serve.read_admin_key(None)  # nobody knows it


def test_the_administrative_key_is_where_the_server_reads_it(readers: Path) -> None:
    objects = render(readers)
    pod = objects["Deployment/blipstream"]["spec"]["template"]["spec"]
    (option,) = (each for each in container(pod)["args"] if each.startswith("--admin-key-file="))
    path = Path(option.partition("=")[2])
    (mount,) = (each for each in container(pod)["volumeMounts"] if each["mountPath"] == str(path.parent))
    (secret,) = (each["secret"] for each in pod["volumes"] if each["name"] == mount["name"])
    assert secret["defaultMode"] == 0o440  # the group's: see fsGroup
    assert f"create secret generic {secret['secretName']} --from-file={path.name}=" in README
    (token,) = pod["initContainers"][0]["env"]
    reference = token["valueFrom"]["secretKeyRef"]
    assert reference["optional"]
    assert f"create secret generic {reference['name']} --from-file={reference['key']}=" in README


def test_the_example_of_the_readme(readers: Path) -> None:
    """Everything that it sets has arrived."""
    objects = render(readers)
    example = load_yaml((readers / "kustomization.yaml").read_text())
    (image,), (settings,) = example["images"], example["configMapGenerator"]
    pod = objects["Deployment/blipstream"]["spec"]["template"]["spec"]
    assert container(pod)["image"] == f"{image['newName']}:gpu"
    assert set(settings["literals"]) <= {f"{k}={v}" for k, v in objects["ConfigMap/blipstream"]["data"].items()}
    assert settings["literals"][0].partition("=")[2] in str(arguments(pod["initContainers"][0], objects))
    assert "PodMonitor/blipstream" in objects


def test_ports(objects: Objects, pod: dict[str, Any]) -> None:
    assert {each["name"]: each["containerPort"] for each in container(pod)["ports"]} == PORTS
    served = {}
    for key, each in objects.items():
        if key.startswith("Service/"):
            assert all(port["targetPort"] == port["name"] for port in each["spec"]["ports"])
            served[each["metadata"]["name"]] = {port["name"]: port["port"] for port in each["spec"]["ports"]}
    captions = {name: PORTS[name] for name in ("http", "grpc")}
    others = {name: PORTS[name] for name in ("metrics", "health")}
    assert served == {"blipstream": captions, "blipstream-pods": captions, "blipstream-metrics": others}
    clients, monitoring = objects["NetworkPolicy/blipstream"]["spec"]["ingress"]
    assert {each["port"] for each in clients["ports"]} == captions.keys()
    assert {each["port"] for each in monitoring["ports"]} == others.keys()


def test_everything_selects_the_pods(objects: Objects) -> None:
    deployment = objects["Deployment/blipstream"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    selectors = [deployment["selector"], spread["labelSelector"]]
    for each in objects.values():
        match each["kind"]:
            case "Service":
                selectors.append({"matchLabels": each["spec"]["selector"]})
            case "NetworkPolicy":
                selectors.append(each["spec"]["podSelector"])
            case "PodDisruptionBudget" | "PodMonitor":
                selectors.append(each["spec"]["selector"])
    assert all(selector == {"matchLabels": labels} for selector in selectors)


def test_prometheus_calls_the_jobs_as_the_alerts_do(readers: Path) -> None:
    scraped = load_yaml((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped["scrape_configs"]}
    endpoints = render(readers)["PodMonitor/blipstream"]["spec"]["podMetricsEndpoints"]
    jobs = {each["relabelings"][0]["replacement"]: [f"triton:{PORTS[each['port']]}"] for each in endpoints}
    assert all(each["relabelings"][0]["targetLabel"] == "job" for each in endpoints)
    assert jobs == targets
    assert {each["interval"] for each in endpoints} == {scraped["global"]["scrape_interval"]}


def test_probes(pod: dict[str, Any]) -> None:
    """Requests come once there are captions, and a server that is restarted is left alone meanwhile."""
    probes = {kind: container(pod)[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    assert all(each["httpGet"]["port"] == "health" for each in probes.values())

    def answers(health: Health) -> dict[str, bool]:
        return {kind: health.page(each["httpGet"]["path"])[0] == HTTPStatus.OK for kind, each in probes.items()}

    health = Health()
    assert answers(health) == {"startup": False, "readiness": False, "liveness": True}
    health.ready = True
    assert answers(health) == {"startup": False, "readiness": False, "liveness": True}
    health.note_caption()
    assert answers(health) == {"startup": True, "readiness": True, "liveness": True}
    patience = probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"]
    assert patience > DEFAULTS["timeout"] + blipstream_client._base.DEFAULT_TIMEOUT  # by when the server gave up


def test_requests_in_flight_have_their_time(pod: dict[str, Any]) -> None:
    """Kubernetes counts the hook's seconds, too."""
    command, seconds = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    left = pod["terminationGracePeriodSeconds"] - int(seconds)
    assert f"{left}s" == SERVICES["triton"]["stop_grace_period"]
    assert left > TritonServer.exit_timeout + 2 * GRACE_SECONDS


def test_what_a_killed_container_left_is_removed(pod: dict[str, Any], tmp_path: Path) -> None:
    shell, option, script, *_ = container(pod)["args"]
    folders = re.findall(r"(/\S+)/\*", script)
    assert set(folders) == {"/dev/shm", "/tmp"}  # noqa: S108
    left = [tmp_path / f"{number}" / "left" for number in range(len(folders))]
    for folder, path in zip(folders, left, strict=True):
        (path / "inside").mkdir(parents=True)
        script = script.replace(f"{folder}/*", f"{shlex.quote(str(path.parent))}/*")
    done = subprocess.run(
        [shell, option, script, "sh", "echo", "two words", "--flag"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "two words --flag\n"
    assert not any(path.exists() for path in left)
    assert all(path.parent.exists() for path in left)


def test_readme_paths_exist() -> None:
    paths = set(re.findall(r"\bdeploy/kubernetes[\w/-]*", README))
    assert {"deploy/kubernetes", "deploy/kubernetes/cpu"} <= paths
    assert all((ROOT / path / "kustomization.yaml").is_file() for path in paths)


def test_readme_makes_rules_for_the_operator() -> None:
    (command,) = (text for language, text in BLOCKS if language == "sh" and "PrometheusRule" in text)
    script = f"kubectl() {{ cat; }}\n{command}"
    done = subprocess.run(["sh", "-ec", script], cwd=ROOT, capture_output=True, text=True, check=True)
    made = load_yaml(done.stdout)
    rules = load_yaml((ROOT / "deploy/prometheus/rules/blipstream.yml").read_text())
    assert (made["apiVersion"], made["kind"], made["spec"]) == (OPERATORS_OWN, "PrometheusRule", rules)
    named = set(re.findall(r"blipstream:\w+", README)) - {"blipstream:gpu", "blipstream:cpu"}  # images
    assert named <= {rule.get("record") for group in rules["groups"] for rule in group["rules"]}


def test_readme_names_the_service_of_all_pods() -> None:
    (name,) = re.findall(r"`grpc://([\w-]+):8001`", README)
    assert render(FOLDER)[f"Service/{name}"]["spec"]["clusterIP"] == "None"
