# SPDX-License-Identifier: Apache-2.0
"""Pin the images of others by their digests: `make pin-images`.

A tag may name another image tomorrow; a digest may not. skopeo asks each registry which image a tag names today.
"""

import hashlib
import re
import subprocess
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "deploy" / "Dockerfile", ROOT / "docker-compose.yml", ROOT / "deploy" / "nginx" / "deployment.yaml")
# neither our own images, which are built here, nor stages, which have no tag
IMAGE = re.compile(r"^(FROM |\s+image: )(?!blipstream:)([\w./:-]+:[\w.-]+)(@sha256:[0-9a-f]{64})?(?=\s)", re.MULTILINE)


def digest_of(image: str) -> str:
    """The digest of the image that a tag names today, for all platforms. Raises click.ClickException if unknown."""
    try:
        done = subprocess.run(["skopeo", "inspect", "--raw", f"docker://{image}"], capture_output=True, check=False)
    except FileNotFoundError:
        raise click.ClickException("skopeo is needed: install the package of that name") from None
    if done.returncode:
        raise click.ClickException(f"cannot get the digest of {image}: {done.stderr.decode().strip()}")
    return f"sha256:{hashlib.sha256(done.stdout).hexdigest()}"


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(files: tuple[Path, ...]) -> None:
    """Write the digest behind each tag in FILES."""
    texts = {file: file.read_text() for file in files or FILES}
    images = {found[2] for text in texts.values() for found in IMAGE.finditer(text)}
    digests = {image: digest_of(image) for image in sorted(images)}
    for file, text in texts.items():
        file.write_text(IMAGE.sub(lambda found: f"{found[1]}{found[2]}@{digests[found[2]]}", text))
    click.echo("\n".join(f"{image}@{digest}" for image, digest in digests.items()))


if __name__ == "__main__":
    main()
