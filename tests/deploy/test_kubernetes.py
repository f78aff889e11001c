# SPDX-License-Identifier: Apache-2.0
"""deploy/kubernetes as Kustomize reads it, against the schemas, the programs that it starts and docker-compose.yml."""

import os
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
from blipstream.server import command as serve
from blipstream.server.health import Health
from blipstream.server.triton import GRACE_SECONDS, TritonServer
from tests.conftest import ROOT
from tests.support.deployment import compose, dockerfile, load_yaml
from tests.support.documents import blocks

FOLDER = ROOT / "deploy" / "kubernetes"
NGINX = ROOT / "deploy" / "nginx"
PAGE = (ROOT / "docs" / "deploying" / "kubernetes.md").read_text()
BLOCKS = list(blocks(ROOT / "docs" / "deploying" / "kubernetes.md"))
OLDEST, NEWEST = "1.27", "1.37"  # the manifests keep both schemas; the page names the first
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


def all_containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def rename(pod: dict[str, Any], image: dict[str, str]) -> None:
    for container in all_containers(pod):
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def render(folder: Path, objects: Objects | None = None) -> Objects:
    """The objects that `kubectl kustomize` makes of a folder, without the hashes that it adds to names.

    It knows only what our files use.
    """
    objects = {} if objects is None else objects
    kustomization = load_yaml((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= {
        *("apiVersion", "kind", "resources", "components", "configMapGenerator", "images", "patches")
    }
    for name in kustomization.get("resources", []):
        path = folder / name
        objects |= render(path) if path.is_dir() else by_name(load_all(path))
    for each in kustomization.get("configMapGenerator", []):
        data = dict(literal.split("=", 1) for literal in each.get("literals", []))
        data |= {name: (folder / name).read_text() for name in each.get("files", [])}
        key = f"ConfigMap/{each['name']}"
        if each.get("behavior") == "merge":
            objects[key]["data"] |= data
        else:
            metadata = {"name": each["name"]}
            objects[key] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    for name in kustomization.get("components", []):
        render(folder / name, objects)
    for each in kustomization.get("patches", []):
        for operation in load_yaml(each["patch"] if "patch" in each else (folder / each["path"]).read_text()):
            patch(objects[f"{each['target']['kind']}/{each['target']['name']}"], operation)
    for image in kustomization.get("images", []):
        for pod in pods(objects).values():
            rename(pod, image)
    return objects


def pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """The pod of each Deployment, by its name."""
    deployments = [each for each in objects.values() if each["kind"] == "Deployment"]
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in deployments}


def checkout(folder: Path, kustomization: str) -> Path:
    """A folder with a kustomization.yaml beside a checkout of the repository."""
    (folder / "kustomization.yaml").write_text(kustomization)
    for each in (FOLDER, NGINX):
        shutil.copytree(each, folder / "blipstream" / each.relative_to(ROOT))
    return folder


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's example of a cluster's own kustomization.yaml, beside a checkout."""
    (example,) = (each.code for each in BLOCKS if each.language == "yaml" and "components:" in each.code)
    return checkout(tmp_path_factory.mktemp("cluster"), example)


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kustomization with nginx in front."""
    text = "resources: [blipstream/deploy/kubernetes]\ncomponents: [blipstream/deploy/nginx]\n"
    return checkout(tmp_path_factory.mktemp("https"), text)


@pytest.fixture(params=["gpu", "cpu", "readers", "https"])
def rendered(request: pytest.FixtureRequest, readers: Path, https: Path) -> tuple[Path, Objects]:
    folder = {"gpu": FOLDER, "cpu": FOLDER / "cpu", "readers": readers, "https": https}[request.param]
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
    """A container's arguments, with the settings filled in."""
    assert container["envFrom"] == [{"configMapRef": {"name": "blipstream"}}]
    settings = objects["ConfigMap/blipstream"]["data"]
    return [re.sub(r"\$\((\w+)\)", lambda found: str(settings[found[1]]), each) for each in container["args"]]


def test_kustomize_renders_the_same(rendered: tuple[Path, Objects]) -> None:
    """kubectl, if it is installed, makes the same objects as `render` here."""
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl here: kustomize was not asked what it makes of deploy/kubernetes")
    folder, objects = rendered
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = re.sub(r"\b(blipstream(?:-https)?)-[bcdfghkmt2456789]{10}$", r"\1", done.stdout, flags=re.MULTILINE)
    assert by_name(list(YAML(typ="safe", pure=True).load_all(text))) == objects


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_schema(objects: Objects, version: str) -> None:
    for each in objects.values():
        if each["apiVersion"] != OPERATORS_OWN:
            assert kubernetes_validate.validate(each, version, strict=True) == version


def test_page_names_the_oldest_kubernetes() -> None:
    assert f"Kubernetes {OLDEST} or newer" in PAGE


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


def test_containers_may_do_little(objects: Objects) -> None:
    """The Pod Security Standard `restricted`, and a read-only file system."""
    user, group = next(each.rest for each in dockerfile() if (each.stage, each.keyword) == ("server", "USER")).split(
        ":"
    )
    for pod in pods(objects).values():
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user),
            "runAsGroup": int(group),
            "fsGroup": int(group),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert pod["automountServiceAccountToken"] is False
        assert not any(key.startswith("host") for key in pod)
        for each in all_containers(pod):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        allowed = {"emptyDir", "secret", "configMap", "projected"}
        assert all(volume.keys() - {"name"} <= allowed for volume in pod["volumes"])
        assert {volume["name"] for volume in pod["volumes"]} == {
            mount["name"] for each in all_containers(pod) for mount in each["volumeMounts"]
        }


def test_a_gpu_for_each_pod() -> None:
    def gpus(folder: Path) -> list[int]:
        pod = render(folder)["Deployment/blipstream"]["spec"]["template"]["spec"]
        resources = [each.get("resources", {}) for each in all_containers(pod)]
        return [each.get("limits", {}).get("nvidia.com/gpu", 0) for each in resources]

    assert gpus(FOLDER) == [1, 1]  # the init container needs one to compile the plan
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
    assert secret["defaultMode"] == 0o440  # the group reads it: see fsGroup
    assert f"create secret generic {secret['secretName']} --from-file={path.name}=" in PAGE
    (token,) = pod["initContainers"][0]["env"]
    reference = token["valueFrom"]["secretKeyRef"]
    assert reference["optional"]
    assert f"create secret generic {reference['name']} --from-file={reference['key']}=" in PAGE


def test_triton_may_end_tls() -> None:
    """The server knows the settings, and the Secret in the page has the files."""
    objects = render(FOLDER)
    render(FOLDER / "grpc-tls", objects)
    pod = objects["Deployment/blipstream"]["spec"]["template"]["spec"]
    given = {each["name"]: Path(each["value"]) for each in container(pod)["env"]}
    assert set(given) == {"BLIPSTREAM_TLS_CERTIFICATE", "BLIPSTREAM_TLS_KEY"}
    assert {each.removeprefix("BLIPSTREAM_").lower() for each in given} <= DEFAULTS.keys()
    assert [path.name for path in given.values()] == ["tls.crt", "tls.key"]  # as Kubernetes calls them
    (mount,) = (each for each in container(pod)["volumeMounts"] if each["name"] == "tls")
    assert {str(path.parent) for path in given.values()} == {mount["mountPath"]}
    (secret,) = (each["secret"] for each in pod["volumes"] if each["name"] == mount["name"])
    assert secret["defaultMode"] == 0o440  # the group reads it: see fsGroup
    assert f"create secret tls {secret['secretName']} " in PAGE
    assert kubernetes_validate.validate(objects["Deployment/blipstream"], NEWEST, strict=True) == NEWEST


def test_the_example_of_the_page(readers: Path) -> None:
    """All of its settings take effect."""
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
    captions = {name: PORTS[name] for name in ("http", "grpc")}
    others = {name: PORTS[name] for name in ("metrics", "health")}
    served = {"blipstream": captions, "blipstream-pods": captions, "blipstream-metrics": others}
    for name, ports in served.items():
        found = objects[f"Service/{name}"]["spec"]["ports"]
        assert all(port["targetPort"] == port["name"] for port in found)
        assert {port["name"]: port["port"] for port in found} == ports
    clients, monitoring = objects["NetworkPolicy/blipstream"]["spec"]["ingress"]
    assert {each["port"] for each in clients["ports"]} == captions.keys()
    assert {each["port"] for each in monitoring["ports"]} == others.keys()


def test_everything_selects_its_own_pods(objects: Objects) -> None:
    for each in objects.values():
        spec = each.get("spec", {})
        match each["kind"]:
            case "Deployment":
                (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
                assert spread["labelSelector"] == spec["selector"]
                assert spec["selector"]["matchLabels"] == each["metadata"]["labels"]
                assert each["metadata"]["labels"].items() <= spec["template"]["metadata"]["labels"].items()
                assert each["metadata"]["labels"] == {"app.kubernetes.io/name": each["metadata"]["name"]}
            case "Service":
                assert spec["selector"] == each["metadata"]["labels"]
            case "NetworkPolicy":
                assert spec["podSelector"] == {"matchLabels": each["metadata"]["labels"]}
            case "PodDisruptionBudget" | "PodMonitor":
                assert spec["selector"] == {"matchLabels": each["metadata"]["labels"]}
            case kind:
                assert kind == "ConfigMap"
    named = {each["metadata"]["labels"]["app.kubernetes.io/name"] for each in objects.values() if "spec" in each}
    assert named == pods(objects).keys()


def test_the_same_nginx_is_started_as_by_compose(https: Path) -> None:
    objects = render(https)
    pod, service = pods(objects)["blipstream-https"], SERVICES["nginx"]
    nginx = container(pod)
    assert (nginx["image"], nginx["args"]) == (service["image"], service["command"])
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == service["user"]
    mounts = {each["mountPath"]: each for each in nginx["volumeMounts"]}
    volumes = {path: next(each for each in pod["volumes"] if each["name"] == mounts[path]["name"]) for path in mounts}
    files = {path: ROOT / file for file, path, _ in (bound.split(":") for bound in service["volumes"])}
    for path, file in files.items():
        assert file.read_text() == objects["ConfigMap/blipstream-https"]["data"][mounts[path]["subPath"]]
        assert volumes[path]["configMap"] == {"name": "blipstream-https", "defaultMode": 0o555}
        assert not path.endswith(".sh") or os.access(file, os.X_OK), "the image takes no notice of it"
    projected = volumes["/run/secrets"]["projected"]
    assert projected["defaultMode"] == 0o440  # the group reads it: see fsGroup
    items = [item for source in projected["sources"] for item in source["secret"]["items"]]
    assert {item["path"] for item in items} == set(service["secrets"])
    (tmpfs,) = service["tmpfs"]
    tmp, _, options = tmpfs.partition(":")
    size = volumes[tmp]["emptyDir"]["sizeLimit"].lower().removesuffix("i")
    assert volumes[tmp]["emptyDir"]["medium"] == "Memory"  # a full disk would have the pod evicted
    assert f"size={size}" in options.split(",")
    assert mounts.keys() == {*files, "/run/secrets", tmp}


def test_nginx_is_reached_and_reaches_triton(https: Path) -> None:
    """The ports and names are those of its configuration, and both network policies let requests through."""
    objects = render(https)
    config = objects["ConfigMap/blipstream-https"]["data"]["nginx.conf"]
    nginx = container(pods(objects)["blipstream-https"])
    (port,) = nginx["ports"]
    assert {nginx[probe]["tcpSocket"]["port"] for probe in ("readinessProbe", "livenessProbe")} == {port["name"]}
    assert re.findall(r"listen (\d+)", config) == [str(port["containerPort"])]
    (served,) = objects["Service/blipstream-https"]["spec"]["ports"]
    assert (served["port"], served["targetPort"]) == (443, port["name"])
    policy = objects["NetworkPolicy/blipstream-https"]["spec"]
    assert policy["ingress"] == [{"ports": [{"port": port["name"]}]}]

    upstreams = [each.split(":") for each in re.findall(r"server (\S+:\d+);", config)]
    assert {name for name, _ in upstreams} == {"triton"}
    ports = {int(number) for _, number in upstreams}
    triton = objects["Service/triton"]["spec"]
    assert {each["port"] for each in triton["ports"]} == ports
    assert {PORTS[each["targetPort"]] for each in triton["ports"]} == ports
    assert "clusterIP" not in triton  # not headless, since nginx asks for the address once
    to_triton, names = policy["egress"]
    assert to_triton["to"] == [{"podSelector": {"matchLabels": triton["selector"]}}]
    assert {each["port"] for each in to_triton["ports"]} == ports
    assert "to" not in names
    assert {each["port"] for each in names["ports"]} == {53}
    (client,) = objects["NetworkPolicy/blipstream"]["spec"]["ingress"][0]["from"]
    labels = objects["Deployment/blipstream-https"]["spec"]["template"]["metadata"]["labels"]
    assert client["podSelector"]["matchLabels"].items() <= labels.items()


def test_nginx_has_its_secrets(https: Path) -> None:
    projected = next(each for each in pods(render(https))["blipstream-https"]["volumes"] if "projected" in each)
    keys, certificate = (source["secret"] for source in projected["projected"]["sources"])
    assert f"create secret generic {keys['name']} --from-file={keys['items'][0]['key']}=" in PAGE
    assert f"create secret tls {certificate['name']} " in PAGE
    assert [item["key"] for item in certificate["items"]] == [
        "tls.crt",
        "tls.key",
    ]  # as `kubectl create secret tls` names them


def test_prometheus_calls_the_jobs_as_the_alerts_do(readers: Path) -> None:
    scraped = load_yaml((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped["scrape_configs"]}
    endpoints = render(readers)["PodMonitor/blipstream"]["spec"]["podMetricsEndpoints"]
    jobs = {each["relabelings"][0]["replacement"]: [f"triton:{PORTS[each['port']]}"] for each in endpoints}
    assert all(each["relabelings"][0]["targetLabel"] == "job" for each in endpoints)
    assert jobs == targets
    assert {each["interval"] for each in endpoints} == {scraped["global"]["scrape_interval"]}


def test_probes(pod: dict[str, Any]) -> None:
    """A pod gets requests once it captions. While its server restarts, nobody kills it."""
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
    assert patience > DEFAULTS["timeout"] + blipstream_client._base.DEFAULT_TIMEOUT  # by then the server has given up


def seconds_to_stop(pod: dict[str, Any]) -> int:
    """Seconds to stop that are left after the preStop hook: Kubernetes counts the hook's, too."""
    command, seconds = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    return int(pod["terminationGracePeriodSeconds"]) - int(seconds)


def test_requests_in_flight_have_time_to_finish(pod: dict[str, Any], https: Path) -> None:
    left = seconds_to_stop(pod)
    assert f"{left}s" == SERVICES["triton"]["stop_grace_period"]
    assert left > TritonServer.exit_timeout + 2 * GRACE_SECONDS
    nginx = f"{seconds_to_stop(pods(render(https))['blipstream-https'])}s"
    assert nginx == SERVICES["nginx"]["stop_grace_period"]
    assert set(re.findall(r"_read_timeout (\w+);", (NGINX / "nginx.conf").read_text())) == {nginx}


def test_leftovers_of_a_killed_container_are_removed(pod: dict[str, Any], tmp_path: Path) -> None:
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


def test_page_paths_exist() -> None:
    paths = set(re.findall(r"\bdeploy/kubernetes[\w/-]*", PAGE))
    assert {"deploy/kubernetes", "deploy/kubernetes/cpu"} <= paths
    assert all((ROOT / path / "kustomization.yaml").is_file() for path in paths)


def test_page_makes_rules_for_the_operator() -> None:
    (command,) = (each.code for each in BLOCKS if each.language == "sh" and "PrometheusRule" in each.code)
    script = f"kubectl() {{ cat; }}\n{command}"
    done = subprocess.run(["sh", "-ec", script], cwd=ROOT, capture_output=True, text=True, check=True)
    made = load_yaml(done.stdout)
    rules = load_yaml((ROOT / "deploy/prometheus/rules/blipstream.yml").read_text())
    assert (made["apiVersion"], made["kind"], made["spec"]) == (OPERATORS_OWN, "PrometheusRule", rules)
    named = set(re.findall(r"blipstream:\w+", PAGE)) - {"blipstream:gpu", "blipstream:cpu"}  # images
    assert named <= {rule.get("record") for group in rules["groups"] for rule in group["rules"]}


def test_page_names_the_service_of_all_pods() -> None:
    (name,) = re.findall(r"`grpc://([\w-]+):8001`", PAGE)
    assert render(FOLDER)[f"Service/{name}"]["spec"]["clusterIP"] == "None"
