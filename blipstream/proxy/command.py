# SPDX-License-Identifier: Apache-2.0
"""`blipstream proxy`: make the folder, start nginx, give keys and take them back."""

import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from blipstream import command_line
from blipstream.errors import BlipstreamError, ServerError
from blipstream.proxy import certificate, keys, nginx
from blipstream.server.triton import TritonServer

FIRST_CLIENT = "me"
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # hosts that are no names to ask

FOLDER = click.argument(
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    callback=lambda context, parameter, folder: _ours(context, folder),  # noqa: ARG005
)


class Commands(click.Group):
    """Commands that end with one sentence if they fail."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run one."""
        try:
            return super().invoke(ctx)
        except BlipstreamError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(
                ": ".join(filter(None, [error.filename, error.strerror or str(error)]))
            ) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main() -> None:
    """Let others ask your server: nginx in front of it, with TLS, keys and limits.

    DIR is a folder that `init` makes. It has nginx's configuration, the keys and a certificate.
    """


@main.command(short_help="Make DIR: keys, a certificate and nginx.conf.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--client", "clients", multiple=True, default=[FIRST_CLIENT], help="Who gets a key, by name; may be repeated."
)
@click.option("--domain", "domains", multiple=True, help="A name or IP address of this machine; may be repeated.")
@click.option(
    "--host", default=TritonServer.host, type=command_line.Host(), help="Address to listen on; 0.0.0.0 for all."
)
@click.option("--https-port", default=8443, type=click.IntRange(1, 65535), help="For HTTP and gRPC.")
@click.option("--triton", default=TritonServer.host, type=command_line.Host(), help="Host on which the server listens.")
@click.option("--http-port", default=TritonServer.http_port, type=click.IntRange(1, 65535), help="The server's.")
@click.option("--grpc-port", default=TritonServer.grpc_port, type=click.IntRange(1, 65535), help="The server's.")
def init(
    folder: Path,
    clients: tuple[str, ...],
    domains: tuple[str, ...],
    host: str,
    https_port: int,
    triton: str,
    http_port: int,
    grpc_port: int,
) -> None:
    """Make DIR: the first keys, a certificate to try it with, and nginx.conf.

    The certificate is for the domains, the host, localhost and 127.0.0.1.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.ClickException(f"{folder} exists: choose another folder, or remove it and all keys in it")
    is_local = host in certificate.LOCAL_NAMES
    names = domains if is_local or host in EVERYWHERE else (*domains, host)
    is_new = not folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")  # before there are keys
        folder.chmod(0o700)
        (folder / "tmp").mkdir()
        certificate.make(folder / "certificate.pem", folder / "key.pem", names)
        for client in clients:
            keys.add(folder / "keys", client)
        configuration = nginx.configuration(
            command_line.address(host, https_port),
            command_line.address(triton, http_port),
            command_line.address(triton, grpc_port),
        )
        (folder / "nginx.conf").write_text(configuration, encoding="utf-8")
    except (BlipstreamError, OSError):
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if is_new:
            folder.rmdir()
        raise
    name = min(names, key=lambda each: each.startswith("*"), default="localhost")  # the first one that can be asked
    url = f"grpcs://{command_line.address('localhost' if is_local else name.replace('*', 'NAME'), https_port)}"
    click.echo(f"{folder} has nginx.conf, a key for {', '.join(clients)} and a certificate to try it with.")
    if is_local:
        click.echo("It is for this machine alone; --host 0.0.0.0 would open it to others.")
    elif not names:
        click.echo("Its certificate is for localhost alone. For others, give it a name of yours:")
        click.echo(f"  {_command('renew', folder, '--domain', 'NAME')}")
    _show("Start it", _command("start", folder))
    _show(
        "Then ask through it; other machines need the key and certificate.pem, too",
        f'export BLIPSTREAM_API_KEY="$({_command("key", folder, clients[0])})"',
        f"{_program()} caption IMAGE --url {url} \\",
        f"    --ca-file {shlex.quote(str(folder / 'certificate.pem'))}",
    )
    _show(
        "Give another client a key, and take it back",
        _command("add", folder, "NAME"),
        _command("revoke", folder, "NAME"),
    )


@main.command()
@FOLDER
def start(folder: Path) -> None:
    """Run nginx until Ctrl-C.

    It runs as you do. If you are root, its workers run as the owner of DIR.
    """
    keys.check(folder / "keys")
    if not keys.clients(folder / "keys"):
        give = _command("add", folder, FIRST_CLIENT)
        raise click.ClickException(f"{folder / 'keys'} has no key, so nobody could ask: give one by `{give}`")
    if pid := nginx.master(folder):
        raise click.ClickException(f"nginx runs from {folder} already: to start it anew, end it by `kill {pid}`")
    command = nginx.command(folder)
    address = nginx.free_address(folder)
    nginx.check(command, folder)
    nginx.check_dates(folder)
    for secret in (folder / "keys", folder / "key.pem"):
        if secret.exists() and secret.stat().st_mode & 0o044:
            click.echo(f"Others may read {secret}: `chmod 600 {shlex.quote(str(secret))}` ends that.", err=True)
    click.echo(f"nginx listens on {address} until Ctrl-C. It prints a line for each request.", err=True)
    nginx.become(command, folder)


@main.command()
@FOLDER
@click.option("--domain", "domains", multiple=True, help="As for init.  [default: the names that it has]")
def renew(folder: Path, domains: tuple[str, ...]) -> None:
    """Make a new trial certificate, valid for a year.

    A running nginx shows it to new connections, and the others go on. Clients must trust the new one.
    """
    file = folder / "certificate.pem"
    certificate.renew(file, folder / "key.pem", domains)
    _apply(folder, file)
    click.echo(f"{file} is new, and valid for {certificate.DAYS} days.\nGive it to clients, who trust the old one.")


@main.command()
@FOLDER
@click.argument("client", metavar="NAME")
def add(folder: Path, client: str) -> None:
    """Give a client a key."""
    _change(folder, keys.add, client)
    _show(f"{client} has a key. It is printed by", _command("key", folder, client))


@main.command()
@FOLDER
@click.argument("client", metavar="NAME")
def revoke(folder: Path, client: str) -> None:
    """Take back a client's key."""
    if not _change(folder, keys.revoke, client):
        raise ServerError(f"{client} has no key in {folder} any more, but until then the old one may go on working")
    click.echo(f"{client} has no key in {folder} any more.")


@main.command()
@FOLDER
@click.argument("client", metavar="NAME")
def key(folder: Path, client: str) -> None:
    """Print a client's key.

    The client sends it as `authorization: Bearer KEY`, or sets BLIPSTREAM_API_KEY.
    """
    click.echo(keys.key_of(folder / "keys", client))


def _ours(context: click.Context, folder: Path) -> Path:
    if not (folder / "nginx.conf").is_file():
        init = f"{_program()} proxy init DIR"
        raise click.BadParameter(f"{folder} has no nginx.conf: name a folder that `{init}` made, or make a new one")
    if not (folder / "keys").is_file() and context.command is not add:
        new = _command("add", folder, FIRST_CLIENT)
        raise click.BadParameter(f"{folder} has lost its file of keys: `{new}` begins a new one, with new keys")
    return folder


def _change(folder: Path, change: Callable[[Path, str], None], client: str) -> bool:
    """Change a client's key and apply it as `_apply` does. If nginx would not read the file, it stays as it was.

    One at a time, so that nobody writes back a key that another one has just revoked.
    """
    file = folder / "keys"
    with _locked(folder):
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        change(file, client)
        return _apply(folder, file, before)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until nobody else changes the folder's keys, and let nobody until this ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _apply(folder: Path, changed: Path, before: str | None = None) -> bool:
    """Let nginx read a file that was changed, if it runs and could read the keys. Whether nobody uses the old file now.

    If nginx would not read it, the file gets its content of before, if that is given.
    """
    keys.check(folder / "keys")
    try:
        if nginx.reload(folder):
            return True
    except (ServerError, nginx.ReloadRefused) as error:
        if isinstance(error, nginx.ReloadRefused) and before is not None:
            keys.write(changed, before)
            raise ServerError(f"{changed} stays as it was, and its keys go on working: {error}") from error
        raise ServerError(f"{changed} is changed, but {error}") from error
    address = nginx.taken_address(folder)
    if address:
        click.echo(
            f"No nginx runs from this folder, but something listens on {address}.\n"
            "If it is an nginx without its master, it goes on with what it had:\n"
            "`ss -ltnp` names it. End it, and start nginx again.",
            err=True,
        )
    else:
        click.echo("nginx does not run from this folder now, so it counts from its next start.", err=True)
    return address is None


def _program() -> str:
    """How to call `blipstream` from here."""
    ours, found, here = Path(sys.prefix, "bin", "blipstream"), shutil.which("blipstream"), Path.cwd()
    if found and Path(found).samefile(ours):
        return "blipstream"
    return shlex.quote(str(ours.relative_to(here) if ours.is_relative_to(here) else ours))


def _command(verb: str, folder: Path, *words: str) -> str:
    return f"{_program()} proxy {shlex.join([verb, str(folder), *words])}"


def _show(what: str, *lines: str) -> None:
    click.echo("\n".join([f"{what}:", *(f"  {line}" for line in lines)]))
