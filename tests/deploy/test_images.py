# SPDX-License-Identifier: Apache-2.0
"""The images of others, pinned by their digests."""

import hashlib
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import pin_images
from pin_images import FILES, IMAGE, digest_of
from tests.conftest import ROOT
from tests.support.deployment import compose, dockerfile, load_yaml
from tests.support.programs import answers, free_port, program, running

UNPINNED = {"nvcr.io/nvidia/tritonserver:26.05-py3"}  # no registry could be asked yet
PAGE = (ROOT / "docs" / "deploying" / "packages.md").read_text()
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def images() -> set[str]:
    """The images that are pulled, as parsers of the files see them."""
    stages = {each.stage for each in dockerfile()}
    bases = {each.rest.split()[0] for each in dockerfile() if each.keyword == "FROM"}
    used = {base for base in bases if base not in stages and "${" not in base}
    used |= {service["image"] for service in compose()["services"].values()}
    for path in ROOT.glob("deploy/**/deployment.yaml"):
        pod = load_yaml(path.read_text())["spec"]["template"]["spec"]
        used |= {each["image"] for each in [*pod.get("initContainers", []), *pod["containers"]]}
    return {image for image in used if re.split("[:@]", image)[0] != "blipstream"}


def test_every_image_is_pinned_or_the_page_says_that_it_is_not() -> None:
    pinned = {image for image in images() if re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)}
    assert images() - pinned == UNPINNED
    assert len({image.partition("@")[0] for image in pinned}) == len(pinned), "one image, two digests"
    assert all(f"`{image}`" in PAGE for image in UNPINNED)


def test_nothing_else_is_fetched_to_build() -> None:
    """Not even a frontend of BuildKit, whose tag could move."""
    assert "# syntax=" not in (ROOT / "deploy" / "Dockerfile").read_text()


def test_all_of_them_are_found() -> None:
    found = {f"{each[2]}{each[3] or ''}" for file in FILES for each in IMAGE.finditer(file.read_text())}
    assert found == images()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a local registry."""
    docker_registry = program("docker-registry")
    port = free_port()
    config, storage = tmp_path / "registry.yml", f"{{filesystem: {{rootdirectory: {tmp_path}/images}}}}"
    config.write_text(f"version: 0.1\nstorage: {storage}\nhttp: {{addr: '127.0.0.1:{port}'}}\n")
    insecure = tmp_path / ".config" / "containers" / "registries.conf"
    insecure.parent.mkdir(parents=True)
    insecure.write_text(f'[[registry]]\nlocation = "127.0.0.1:{port}"\ninsecure = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    with running(
        docker_registry, "serve", config, log=tmp_path / "log", until=lambda: answers(f"http://127.0.0.1:{port}/v2/")
    ):
        yield f"127.0.0.1:{port}"


def push(registry: str, tag: str, text: str) -> str:
    """Push an image in an index, as images for several platforms are, and return the digest that its tag names."""
    base = f"http://{registry}/v2/test/image"

    def put(url: str, content: bytes, kind: str) -> str:
        request = urllib.request.Request(url, content, {"Content-Type": kind}, method="PUT")
        urllib.request.urlopen(request, timeout=20).close()
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    blob = json.dumps({"architecture": "amd64", "os": "linux", "comment": text}).encode()
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    with urllib.request.urlopen(
        urllib.request.Request(f"{base}/blobs/uploads/", b"", method="POST"), timeout=20
    ) as place:
        location = place.headers["Location"]
    put(f"{location}&digest={digest}", blob, "application/octet-stream")
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(blob)}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}).encode()
    part = put(f"{base}/manifests/sha256:{hashlib.sha256(manifest).hexdigest()}", manifest, MANIFEST)
    parts = [{"mediaType": MANIFEST, "digest": part, "size": len(manifest)}]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": parts}).encode()
    return put(f"{base}/manifests/{tag}", index, INDEX)


def test_a_tag_is_pinned_to_the_image_that_it_names_today(registry: str, tmp_path: Path) -> None:
    program("skopeo")
    image = f"{registry}/test/image:1.0"
    file = tmp_path / "Dockerfile"
    file.write_text(f"FROM {image} AS base\nFROM base AS other\n    image: blipstream:gpu\n    image: {image}\n")
    for text in ("first", "rebuilt"):  # and again, over the first digest
        digest = push(registry, "1.0", text)
        result = CliRunner().invoke(pin_images.main, [str(file)])
        assert result.output == f"{image}@{digest}\n"
        assert file.read_text() == (
            f"FROM {image}@{digest} AS base\nFROM base AS other\n"
            f"    image: blipstream:gpu\n    image: {image}@{digest}\n"
        )


def test_without_an_answer_no_file_changes(tmp_path: Path) -> None:
    program("skopeo")
    file = tmp_path / "Dockerfile"
    file.write_text("FROM 127.0.0.1:9/test/image:1.0 AS base\n")
    result = CliRunner().invoke(pin_images.main, [str(file)])
    assert result.exit_code == 1
    assert "cannot get the digest of 127.0.0.1:9/test/image:1.0" in result.stderr
    assert "@" not in file.read_text()


def test_without_skopeo_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(click.ClickException, match="skopeo is needed"):
        digest_of("nginx:1.28.0")
