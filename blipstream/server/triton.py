# SPDX-License-Identifier: Apache-2.0
"""The embedded server: find a `tritonserver` binary, start it, watch it and leave nothing behind.

with TritonServer(Path("model_repository"), config="cpu", http_port=0) as server:
    print(server.http_url)
"""

import ctypes
import ctypes.util
import errno
import http.client
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, TypeVar

from blipstream.errors import ServerError
from blipstream.server import leftovers
from blipstream.server.health import DOORS
from blipstream.server.tls import TLS
from blipstream.serving import backpressure
from blipstream.serving.metrics import ROWS, STEPS, WAITING
from blipstream.serving.telemetry import COUNTER, ENDPOINT, LOG_REQUESTS, REFUSALS, SERVICE

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds blipstream/
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
LOOPBACK = "127.0.0.1"
STUB = "triton_python_backend_stub"
MODELS = "models"  # in a server's folder: a link to its repository
# what can read or change a server beyond captions: memory regions, files that logs and traces go to, models
ADMIN_APIS = "shared-memory,model-repository,trace,logging"
ADMIN_HEADER = "blipstream-admin"  # over gRPC: triton-grpc-protocol-blipstream-admin
NO_GPU = ("CudaDriverHelper", "unable to create stream")  # errors in every log where there is no GPU
ZOMBIE, STOPPED = "Z", "T"  # in /proc/PID/stat: ended and not reaped; halted by a signal
WORKING = "RD"  # running or about to; waiting for a disk
DEFAULTS = {
    # Encoder and decoder share the cores: a thread of one that spins while it waits keeps the other from working. On
    # two cores, this cost no captions under load and made a single one take 0.8 of the time that it takes at 200; at
    # 20000, there were 6 to 10 % fewer under load
    "GOMP_SPINCOUNT": "2000",
    # glibc keeps up to 64 MB that were freed in each heap, and would have eight heaps for each core
    "MALLOC_ARENA_MAX": "2",
}
POLL_SECONDS = 0.1
REAP_SECONDS = 1.0
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl.h
METRICS_SECONDS = 1.0  # for the server to tell its figures
READY_SECONDS = 5.0  # and whether it is ready
LOG_BYTES = 16 << 20  # of the log, which then begins anew: the one before lies beside it as FILE.1
GRACE_SECONDS = 5  # beyond Triton's own exit timeout, before SIGKILL
# Of each of Triton's threads: addresses, which become memory only as they are used. Its HTTP server lays there twice a
# body of a form's type, as which curl sends images unless told otherwise, 16 bytes for each chunk of a body, and about
# 80 for each level of JSON
STACK_BYTES = 256 << 20
FULL = (errno.EMFILE, errno.ENFILE)  # no more files may be open

# Runs as a process of its own, which then becomes tritonserver: if this one dies, the server gets SIGTERM.
LAUNCHER = """
import ctypes, os, resource, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
parent, stack = map(int, sys.argv[1:3])
for limit, value in ((resource.RLIMIT_STACK, stack), (resource.RLIMIT_NOFILE, None)):
    _, most = resource.getrlimit(limit)
    resource.setrlimit(limit, (most if value is None else value, most))
if os.getppid() == parent:
    os.execv(sys.argv[3], sys.argv[3:])
"""

T = TypeVar("T")


@dataclass(frozen=True)
class Installation:
    """A tritonserver binary, and what the wheel's needs besides (a container's finds its own)."""

    binary: Path
    libraries: tuple[Path, ...] = ()
    python_backend: tuple[Path, ...] = ()  # files that must lie side by side
    caches: Path | None = None


def find() -> Installation:
    """Find tritonserver on the PATH or in /opt/tritonserver, else in the wheel nvidia-pytriton."""
    places = f"{os.environ.get('PATH', os.defpath)}:/opt/tritonserver/bin"
    binary = shutil.which("tritonserver", path=places)
    return Installation(Path(binary)) if binary else _find_wheel()


def _find_wheel() -> Installation:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            "there is no tritonserver here: pip install --no-deps nvidia-pytriton==0.7.0, "
            "or work inside NVIDIA's Triton container"
        )
    package = Path(spec.submodule_search_locations[0])
    triton = package / "tritonserver"
    backend = triton / "backends" / "python"
    _check_numpy()
    return Installation(
        binary=triton / "bin" / "tritonserver",
        libraries=(package.parent / "nvidia_pytriton.libs", *_libpython_folder()),
        python_backend=(
            backend / "libtriton_python.so",
            backend / "triton_python_backend_utils.py",
            _find_stub(triton / "python_backend_stubs"),
        ),
        caches=triton / "caches",
    )


def _check_numpy() -> None:
    """Refuse numpy 2: the wheel's stub was compiled against numpy 1 and would read wrong strides."""
    version = importlib.metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise ServerError(f"the wheel's Python backend needs numpy below 2 and found {version}: pip install 'numpy<2'")


def _find_stub(stubs: Path) -> Path:
    """The Python backend's worker, which embeds one Python version."""
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = stubs / wanted / STUB
    if not stub.is_file():
        versions = sorted((p.name for p in stubs.iterdir()), key=lambda name: [int(n) for n in name.split(".")])
        raise ServerError(f"the wheel's tritonserver has no stub for Python {wanted}: use {_one_of(versions)}")
    return stub


def _libpython_folder() -> tuple[Path, ...]:
    """Where libpythonX.Y.so.1.0 lies, or nothing if the system's loader finds it."""
    version = sysconfig.get_config_var("py_version_short")
    name = f"libpython{version}.so.1.0"
    folder = Path(sysconfig.get_config_var("LIBDIR"))
    if (folder / name).is_file():
        return (folder,)
    if ctypes.util.find_library(f"python{version}") != name:
        raise ServerError(
            f"tritonserver's Python backend needs {name}, which this Python lacks: "
            f"apt-get install libpython{version}, or a Python built with --enable-shared"
        )
    return ()


def _one_of(names: list[str]) -> str:
    """A list in words: "a, b or c"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


@dataclass
class TritonServer:
    """A tritonserver process of ours: `with` starts it, waits until it is ready and stops it.

    Start it from a thread that lives as long as the server: Linux ends the child with its parent's thread.
    """

    repository: Path
    _: KW_ONLY
    config: str | None = None  # configs/NAME.pbtxt instead of config.pbtxt
    host: str = LOOPBACK
    http_port: int = 8000  # 0: any free port
    grpc_port: int = 8001
    metrics_port: int = 8002
    tls: TLS | None = None  # at the gRPC port; HTTP, which Triton cannot encrypt, is then for this machine alone
    admin_key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)  # what ADMIN_APIS ask for
    traces: str | None = None  # OpenTelemetry collector that takes spans, as http://localhost:4318/v1/traces
    trace_every: int = 1  # requests, of which one is traced
    log_requests: bool = False  # a line of JSON in the log for each request
    log_path: Path | None = None  # None: a temporary file, kept only if the server fails
    show_log: bool = False  # print it as well
    verbose: int = 0
    ready_timeout: float = 300  # seconds
    exit_timeout: int = 10  # seconds for requests in flight

    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _name: str = field(default="", init=False, repr=False)  # unique: prefixes the shared memory
    _folder: Path | None = field(default=None, init=False, repr=False)
    _locks: dict[Path, int] = field(default_factory=dict, init=False, repr=False)  # by the place that they are for
    _stubs: dict[int, str] = field(default_factory=dict, init=False, repr=False)  # pid: model
    _log: BinaryIO | None = field(default=None, init=False, repr=False)  # open as long as the folder is there
    _keep_log: bool = field(default=False, init=False, repr=False)
    _log_began: int = field(default=0, init=False, repr=False)  # where in the log this process began
    _shown: int = field(default=0, init=False, repr=False)  # bytes of the log that were printed
    _reaping: Lock = field(default_factory=Lock, init=False, repr=False)  # held while the group lets go of its number

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready(self.ready_timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        """Where HTTP requests go."""
        return f"http://{_reachable(self._http_host)}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """Where gRPC requests go."""
        return f"{'grpcs' if self.tls else 'grpc'}://{self.reachable}:{self.grpc_port}"

    @property
    def own_url(self) -> str:
        """Where this machine asks, which has no certificate to show."""
        return self.http_url if self.tls else self.grpc_url

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads."""
        return f"http://{self.reachable}:{self.metrics_port}/metrics"

    @property
    def reachable(self) -> str:
        """The host to ask from this machine."""
        return _reachable(self.host)

    @property
    def _http_host(self) -> str:
        return LOOPBACK if self.tls else self.host

    @property
    def pid(self) -> int:
        """Process and process group of the running server."""
        if self._process is None:
            raise ServerError("the server is not running: start it first")
        return self._process.pid

    def start(self) -> None:
        """Start the process; `wait_ready` says when it serves."""
        if self._process is not None:
            raise ServerError(f"the server runs already, as process {self.pid}: stop it first")
        if not self.repository.is_dir():
            raise ServerError(f"there is no model repository at {self.repository}: check the path")
        installation = find()
        self.http_port, self.grpc_port, self.metrics_port = self._free_ports()
        folder, log = self._prepare()
        self._log_began = log.seek(0, os.SEEK_END)
        pressure = folder / "backpressure"
        backpressure.create(pressure)
        command = [str(installation.binary), *self._options(installation, folder)]
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", LAUNCHER, str(os.getpid()), str(_stack_bytes()), *command],
            env=_environment(installation) | self._journal_environment() | {backpressure.FILE: str(pressure)},
            cwd=ROOT,  # the stub's sys.path begins with its working folder
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(self._locks.values()),
            start_new_session=True,
        )

    def _prepare(self) -> tuple[Path, BinaryIO]:
        """The folder and the log, which outlive `kill`: a restart needs nothing that a full disk would refuse."""
        if self._folder is None or self._log is None:
            self._name = leftovers.new_name()
            temporary = _plain_folder()
            try:
                for place in {SHARED_MEMORY, temporary}:
                    leftovers.sweep(place)
                    self._locks[place] = leftovers.claim(place, self._name)
                self._folder = Path(tempfile.mkdtemp(prefix=f"{self._name}-", dir=temporary))
            except OSError as error:
                raise ServerError(f"{place} cannot be written ({error.strerror}): see that there is room") from error
            self._keep_log = self.log_path is not None
            self.log_path = (self.log_path or temporary / f"{self._name}.log").resolve()
            self._log = _create(self.log_path)
            self._shown = 0
        return self._folder, self._log

    def wait_ready(self, timeout: float) -> None:
        """Return once every model is ready; raise ServerError if that fails or takes too long.

        Triton may abort while it loads Python models (triton-inference-server/tensorrtllm_backend, issue 349);
        then it is started once more.
        """
        deadline = time.monotonic() + timeout
        started_again = False
        while True:
            if not started_again and self._aborted():
                self.kill()
                self.start()
                started_again = True
            self.check()
            if self._is_ready():
                self.check()  # which remembers whose process is whose
                return
            if time.monotonic() > deadline:
                raise self._failure(f"the server was not ready after {timeout:g} seconds")
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raise ServerError if the server died, or one of its models' processes: Triton restarts none."""
        exited = self._exited()
        self._show_log()
        self._rotate_log()
        if exited is not None:
            raise self._failure(_exit_words(exited))
        children = self._children()
        new = children.keys() - self._stubs.keys()
        self._stubs |= {pid: model for pid in new if (model := _stub_model(pid))}
        if dead := {pid for pid, state in children.items() if state == ZOMBIE}:
            time.sleep(REAP_SECONDS)  # Triton reaps the ones that it ended itself
            for pid in dead & self._dead_stubs():
                model = self._stubs.get(pid, "unknown")
                raise self._failure(f"the process of model '{model}' died, and Triton does not restart it")

    @property
    def is_alive(self) -> bool:
        """Whether the server's own process runs."""
        return self._process is not None and self._exited() is None

    def stopped(self) -> frozenset[str]:
        """The models whose processes were halted by a signal, or "tritonserver"."""
        processes = {self.pid: "tritonserver"} | self._stubs
        return frozenset(name for pid, name in processes.items() if STOPPED in _states(f"{pid}/stat"))

    def working(self) -> frozenset[str]:
        """The models that are computing at this moment, or would if there were a processor for them."""
        return frozenset(m for pid, m in self._stubs.items() if _states(f"{pid}/task/[0-9]*/stat") & set(WORKING))

    def counts(self) -> dict[str, int]:
        """The inferences of each model; none if the server is dumb.

        Where a model counts its own, that is what succeeded: Triton takes whatever it answers for a success.
        """
        page = self._metrics()
        return _figures(page, "nv_inference_count") | _figures(page, COUNTER, 'result="ok"')

    def pending(self) -> dict[str, int]:
        """How much waits for each model, in Triton's queue and its own, or is under way there; none if it is dumb.

        What is under way, only decoders tell.
        """
        page = self._metrics()
        return _sum(_figures(page, metric) for metric in ("nv_inference_pending_request_count", ROWS, WAITING))

    def progress(self) -> dict[str, int]:
        """Steps of each decoder, and requests that a model refused for their senders' fault; none if it is dumb.

        What a door refuses is not counted, for it may do so while all behind it stands still.
        """
        page = self._metrics()
        refused = _sum(_figures(page, COUNTER, f'result="{result}"') for result in REFUSALS)
        return _sum([_figures(page, STEPS), {model: count for model, count in refused.items() if model not in DOORS}])

    def _metrics(self) -> str:
        status, page = _get(self.reachable, self.metrics_port, "/metrics", METRICS_SECONDS)
        return page if status == http.HTTPStatus.OK else ""

    def stop(self) -> None:
        """Stop the server and remove what it left, whatever state it is in.

        Triton refuses new requests from then on, and requests in flight have `exit_timeout` seconds. Over gRPC all of
        them are answered within it. Over HTTP it waits for clients to hang up: a connection that is kept alive is
        served until the time is over, and then cut.
        """
        self._end(patiently=True)
        if self._log is not None:
            self._log.close()
            self._log = None
        for place, lock in self._locks.items():
            with suppress(OSError):  # then the next server does it
                _insist(partial(leftovers.clear, place, self._name))
            os.close(lock)
        self._locks, self._folder = {}, None
        if self.log_path is not None and not self._keep_log:
            for log in (self.log_path, _before(self.log_path)):
                log.unlink(missing_ok=True)
            self.log_path = None

    def kill(self) -> None:
        """End the server at once, to `start` it again on the same ports with the same log."""
        self._end(patiently=False)

    def strike(self) -> None:
        """SIGKILL for the whole group, from any thread, if it runs; to `kill` or `stop` it remains to be done."""
        with self._reaping:
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self, *, patiently: bool) -> None:
        """SIGTERM and patience, then SIGKILL for the whole group; then remove its shared memory.

        The leader is reaped last: until then nothing else can take its process group's number.
        """
        if self._process is not None:
            if patiently and self._is_whole():  # else Triton would wait for the rest in vain
                os.kill(self.pid, signal.SIGTERM)
                self._wait_until_exited(self.exit_timeout + GRACE_SECONDS)
            os.killpg(self.pid, signal.SIGKILL)
            deadline = time.monotonic() + GRACE_SECONDS
            with suppress(OSError):  # nobody can look: what follows waits for those that are our children
                while _insist(lambda: _running(_group(self.pid))) and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
            with self._reaping:
                self._process.wait()
                while not _reap(self.pid) and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                self._process, self._stubs = None, {}
            self._show_log()
        if self._name:
            with suppress(OSError):  # then `stop` does it
                for region in _insist(lambda: list(SHARED_MEMORY.glob(f"{self._regions}*"))):
                    region.unlink(missing_ok=True)

    @property
    def _regions(self) -> str:
        """What its regions in shared memory begin with."""
        return f"{self._name}-shm-"

    def _is_whole(self) -> bool:
        """Whether all of its processes live and none is halted, as far as one can see."""
        with suppress(OSError):
            return not _insist(self._dead_stubs) and not self.stopped()
        return False

    def _show_log(self) -> None:
        """Print what is new in the log."""
        if not self.show_log or self.log_path is None:
            return
        with suppress(OSError):  # a full disk, or a reader who has gone, must not end the server
            with self.log_path.open("rb") as log:
                log.seek(self._shown)
                new = log.read()
            self._shown += len(new)
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()

    def _rotate_log(self) -> None:
        """Begin anew where the log is long; what Triton says at that very moment may be lost."""
        if self.log_path is None or not self.log_path.is_file() or self.log_path.stat().st_size <= LOG_BYTES:
            return
        with suppress(OSError):  # a full disk, which this makes room on
            shutil.copyfile(self.log_path, _before(self.log_path))
        with suppress(OSError):
            os.truncate(self.log_path, 0)
            self._shown = self._log_began = 0

    def _children(self) -> dict[int, str]:
        """The server's own children and their states."""
        return {pid: process.state for pid, process in _group(self.pid).items() if process.parent == self.pid}

    def _dead_stubs(self) -> set[int]:
        return {pid for pid, state in self._children().items() if state == ZOMBIE}

    def _wait_until_exited(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._exited() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _exited(self) -> os.waitid_result | None:
        """How the server ended, or None while it runs. Leaves the process unreaped."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def _aborted(self) -> bool:
        exited = self._exited()
        return exited is not None and exited.si_code != os.CLD_EXITED and exited.si_status == signal.SIGABRT

    def _is_ready(self) -> bool:
        status, _ = _get(_reachable(self._http_host), self.http_port, "/v2/health/ready", READY_SECONDS)
        return status == http.HTTPStatus.OK

    def _free_ports(self) -> list[int]:
        """Bind all three ports at once, so that chosen ones differ, and let them go."""
        wanted = [
            (self._http_host, "HTTP", self.http_port),
            (self.host, "gRPC", self.grpc_port),
            (self.host, "metrics", self.metrics_port),
        ]
        with ExitStack() as stack:
            return [stack.enter_context(_bind(*each)).getsockname()[1] for each in wanted]

    def _options(self, installation: Installation, folder: Path) -> list[str]:
        options = {
            "model-repository": _link(folder / MODELS, self.repository),
            "model-control-mode": "none",
            "exit-on-error": "true",
            "strict-readiness": "true",
            "exit-timeout-secs": self.exit_timeout,
            "http-address": self._http_host,
            "http-port": self.http_port,
            "grpc-address": self.host,
            "grpc-port": self.grpc_port,
            "metrics-address": self.host,
            "metrics-port": self.metrics_port,
            "metrics-config": "summary_latencies=true",
            "backend-config": f"python,shm-region-prefix-name={self._regions}",
        }
        if self.config:
            options["model-config-name"] = self.config
        if checkpoint := _checkpoint(self.repository):
            options["id"] = checkpoint  # clients see it as the server's name
        if self.verbose:
            options["log-verbose"] = self.verbose
        restriction = f"{ADMIN_APIS}:{ADMIN_HEADER}={self.admin_key}"
        options |= {"http-restricted-api": restriction, "grpc-restricted-protocol": restriction}
        if self.tls:
            options |= self.tls.options
        if installation.caches:
            options["cache-directory"] = installation.caches
        if installation.python_backend:
            options["backend-directory"] = _lay_side_by_side(installation.python_backend, folder)
        if not Path("/dev/nvidiactl").exists():
            options["allow-gpu-metrics"] = "false"
        given = (f"--{name}={value}" for name, value in options.items())
        # else Triton loads each model twice: first to ask what its configuration lacks
        return ["--disable-auto-complete-config", *given, *self._trace_options()]

    def _journal_environment(self) -> dict[str, str]:
        """What the models' journals are asked for."""
        return ({ENDPOINT: self.traces} if self.traces else {}) | {LOG_REQUESTS: "1" if self.log_requests else ""}

    def _trace_options(self) -> list[str]:
        """Triton's spans: each model's, with its queue."""
        if not self.traces:
            return []
        settings = ["mode=opentelemetry", "level=TIMESTAMPS", f"rate={self.trace_every}"]
        settings += [f"opentelemetry,url={self.traces}", f"opentelemetry,resource=service.name={SERVICE}"]
        return [f"--trace-config={setting}" for setting in settings]

    def _failure(self, what: str) -> ServerError:
        """The error to raise: one sentence with the reason found in the log, which is kept."""
        self._keep_log = True
        log = self._read_log()
        reason = _failed_model(log) or ": ".join(filter(None, [what, _first_error(log)]))
        if self._folder:  # people know the repository itself, not our link to it
            reason = reason.replace(str(self._folder / MODELS), str(self.repository))
        if "no GPUs are available" in reason:
            reason += ": choose the configuration cpu, or check that nvidia-smi works here"
        return ServerError(f"{reason} (log: {self.log_path})")

    def _read_log(self) -> str:
        """What this process has said."""
        if self.log_path is None:
            return ""
        with suppress(OSError), self.log_path.open("rb") as log:
            log.seek(self._log_began)
            return log.read().decode(errors="replace")
        return ""


def _get(host: str, port: int, path: str, seconds: float) -> tuple[int, str]:
    """Status and text of a page, over a connection of its own and past every proxy; 0 if there is no answer.

    Raises OSError where this process may open no more files: that says nothing of the server.
    """
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        return 0, ""
    finally:
        connection.close()


def _checkpoint(repository: Path) -> str | None:
    """NAME@REVISION of what is served, if its artifacts say so."""
    try:
        config = json.loads((repository / "decoder/1/artifact/config.json").read_text(encoding="utf-8"))
        return f"{config['checkpoint']}@{config['revision']}"
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _reachable(host: str) -> str:
    """Where this machine reaches who listens there."""
    return LOOPBACK if host == "0.0.0.0" else host  # noqa: S104


def _bind(host: str, protocol: str, port: int) -> socket.socket:
    option = f"--{protocol.lower()}-port"
    if not 0 <= port < 1 << 16:
        raise ServerError(f"{protocol} port {port} is out of range: choose 0 to 65535 with {option}")
    try:
        return socket.create_server((host, port))
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ServerError(f"{host} is no address of this machine: choose another with --host") from error
        state = "may not be opened" if isinstance(error, PermissionError) else "is taken"
        raise ServerError(
            f"{protocol} port {port} {state}: choose another with {option}, or 0 for any free port"
        ) from error


def _insist(step: Callable[[], T]) -> T:
    """Do it, and wait a while for somebody to close files where no more may be open."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        try:
            return step()
        except OSError as error:
            if error.errno not in FULL or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def _plain_folder() -> Path:
    """Where temporary files go: Triton hands the paths of models to a shell, unquoted."""
    folders = [Path(tempfile.gettempdir()), Path("/tmp"), SHARED_MEMORY]  # noqa: S108
    for folder in folders:
        if re.fullmatch(r"[\w/.+-]+", str(folder), re.ASCII) and os.access(folder, os.W_OK):
            return folder
    raise ServerError(
        f"the folder for temporary files must have a path of letters, digits and /.+-_ alone, not {folders[0]}: "
        "set TMPDIR to one"
    )


def _create(log: Path) -> BinaryIO:
    try:
        file = log.open("ab")  # so that Triton goes on at the end of what was cut short
        if log.is_file():
            file.truncate(0)
        return file
    except OSError as error:
        raise ServerError(f"the log {log} cannot be written ({error.strerror}): choose another with --log") from error


def _before(log: Path) -> Path:
    """Where the log lies that this one followed."""
    return log.with_name(f"{log.name}.1")


def _lay_side_by_side(files: tuple[Path, ...], folder: Path) -> Path:
    """A backend directory with the Python backend's files linked into one folder."""
    backends = folder / "backends"
    (backends / "python").mkdir(parents=True, exist_ok=True)
    for file in files:
        _link(backends / "python" / file.name, file)
    return backends


def _link(link: Path, target: Path) -> Path:
    """A link without the characters that its target's path may have."""
    with suppress(FileExistsError):  # since the last start
        link.symlink_to(target.absolute())
    return link


def _stack_bytes() -> int:
    """What the limit of a stack shall be: what it is where addresses count, else STACK_BYTES if that is permitted.

    Never none: glibc would make the stacks of threads 2 MiB.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    strict = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    if strict or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return soft
    wanted = max(STACK_BYTES, soft)  # no limit is -1
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _environment(installation: Installation) -> dict[str, str]:
    """The running environment, and the paths by which the stub's embedded Python finds it.

    24.10 starts that Python isolated: it ignores PYTHONPATH and takes its prefix, and so its site-packages,
    from the python3 that is first on the PATH. Newer releases read PYTHONPATH too.
    """
    packages = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    first: dict[str, tuple[str | Path, ...]] = {
        "PATH": (Path(sys.executable).parent,),
        "PYTHONPATH": (ROOT, *packages),
        "LD_LIBRARY_PATH": installation.libraries,
    }
    return (
        DEFAULTS
        | os.environ
        | {
            name: os.pathsep.join(filter(None, [*map(str, paths), os.environ.get(name, "")]))
            for name, paths in first.items()
        }
    )


def _figures(page: str, metric: str, label: str = "") -> dict[str, int]:
    """Of each model; one on GPUs has a line for each of them."""
    figures: Counter[str] = Counter()
    for labels, figure in re.findall(rf"^{metric}\{{(.*)\}} (\d+)", page, re.MULTILINE):
        model = re.search(r'\bmodel="([^"]+)"', labels)
        if model and label in labels:
            figures[model[1]] += int(figure)
    return dict(figures)


def _sum(figures: Iterable[dict[str, int]]) -> dict[str, int]:
    """Of each model; one that all say 0 of stays."""
    total: Counter[str] = Counter()
    for each in figures:
        total.update(each)
    return dict(total)


class _Process(NamedTuple):
    state: str
    parent: int
    group: int


def _stats(pattern: str) -> dict[int, _Process]:
    """What /proc says of processes or threads, by their number. Raises OSError where no more files may be open."""
    found = {}
    for stat in Path("/proc").glob(pattern):
        try:
            state, parent, group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
        except OSError as error:
            if error.errno in FULL:
                raise
            continue  # ended meanwhile
        found[int(stat.parent.name)] = _Process(state, int(parent), int(group))
    return found


def _group(group: int) -> dict[int, _Process]:
    """The processes of a group."""
    return {pid: process for pid, process in _stats("[0-9]*/stat").items() if process.group == group}


def _states(pattern: str) -> set[str]:
    """The states that processes or threads are in."""
    return {process.state for process in _stats(pattern).values()}


def _running(group: dict[int, _Process]) -> set[int]:
    return {pid for pid, process in group.items() if process.state != ZOMBIE}


def bypass_proxies(*hosts: str) -> None:
    """Have this process, and what it starts, reach this machine and these hosts past the environment's proxy."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = ",".join(filter(None, [given, LOOPBACK, "localhost", "::1", *hosts]))


def adopt_orphans() -> None:
    """Become the parent of what a dead server leaves, so that `kill` reaps it: in a container nobody else may."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _reap(group: int) -> bool:
    """Let go of the ended processes of a group that are our children; whether none are left."""
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
        return False  # the threads of one are still ending
    return True


def _stub_model(pid: int) -> str | None:
    """The model that a backend stub serves, or None for any other process."""
    try:
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return None
    # REPOSITORY/MODEL/VERSION/model.py
    return Path(arguments[0]).parents[1].name if Path(program).name == STUB else None


def _exit_words(exited: os.waitid_result) -> str:
    if exited.si_code == os.CLD_EXITED:
        return f"tritonserver exited by itself with status {exited.si_status}"
    return f"tritonserver was ended by signal {exited.si_status}"


def _failed_model(log: str) -> str | None:
    """The first model that failed to load and why."""
    line = re.search(r"^E.*?\] (\"failed to load '.+\")$", log, re.MULTILINE)
    message = _unquote(line[1]).partition("\n\nAt:\n")[0] if line else ""  # what follows is a traceback
    status, error = r"(?:[A-Z][a-z ]+: )?", r"(?:\w+Error: )?"
    found = re.match(rf"failed to load '(.+?)' version \d+: {status}{error}(.*)", message, re.DOTALL)
    return f"model '{found[1]}' failed to load: {' '.join(found[2].split())}" if found else None


def _first_error(log: str) -> str:
    """What Triton, or a process of its, said when things went wrong, or nothing."""
    pattern = r"^(?:E\d{4} [^\]]*\] |error: |terminate called .*\n +what\(\): +)(.*)"
    errors = [_unquote(error) for error in re.findall(pattern, log, re.MULTILINE)]
    return next((" ".join(error.split()) for error in errors if not any(word in error for word in NO_GPU)), "")


def _unquote(text: str) -> str:
    """Triton logs its messages as JSON strings."""
    with suppress(ValueError):
        return str(json.loads(text))
    return text
