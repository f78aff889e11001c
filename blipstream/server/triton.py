# SPDX-License-Identifier: Apache-2.0
"""One tritonserver process: start it, wait until it serves, check it, and leave nothing behind.

with TritonServer(Path("model_repository"), config="cpu", http_port=0) as server:
    print(server.http_url)
"""

import http
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from blipstream.errors import ServerError
from blipstream.options import OptionDefaults
from blipstream.server import arguments, network, open_files, proc
from blipstream.server.installation import ROOT, Installation, environment, find_installation
from blipstream.server.launcher import launched
from blipstream.server.log import Log, failed_model, first_error
from blipstream.server.metrics import Metrics
from blipstream.server.served_repository import PLAIN, WITH_DEFAULTS, effective
from blipstream.server.tls import TLS
from blipstream.server.workspace import Workspace
from blipstream.serving import backpressure
from blipstream.serving.telemetry import ENDPOINT, LOG_REQUESTS

POLL_SECONDS = 0.1
WAITING_SECONDS = 10.0  # between two words about a server that is not ready yet
REAP_SECONDS = 1.0  # for Triton to reap a process that it ended itself
METRICS_SECONDS = 1.0  # for the metrics page to come
READY_SECONDS = 5.0  # for the answer whether the server is ready
GRACE_SECONDS = 5  # beyond Triton's own exit timeout, before SIGKILL


@dataclass
class TritonServer:
    """A tritonserver process: `with` starts it, waits until it is ready, and stops it.

    Start it from a thread that lives as long as the server: Linux ends the child with its parent's thread.
    """

    repository: Path
    _: KW_ONLY
    config: str | None = None  # configs/NAME.pbtxt instead of config.pbtxt
    host: str = network.LOOPBACK
    http_port: int = 8000  # 0: any free port
    grpc_port: int = 8001
    metrics_port: int = 8002
    defaults: OptionDefaults = field(default_factory=OptionDefaults)  # of options, as the operator sets them
    tls: TLS | None = None  # at the gRPC port; HTTP, which Triton cannot encrypt, is then for this machine alone
    admin_key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)  # for arguments.ADMIN_APIS
    traces: str | None = None  # an OpenTelemetry collector for spans, such as http://localhost:4318/v1/traces
    trace_every: int = 1  # trace one request in so many
    log_requests: bool = False  # write a line of JSON to the log for each request
    log_path: Path | None = None  # None: a temporary file, which is kept only if the server fails
    show_log: bool = False  # print it as well
    verbose: int = 0
    ready_timeout: float = 300.0  # seconds
    exit_timeout: int = 10  # seconds for requests in flight

    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _workspace: Workspace | None = field(default=None, init=False, repr=False)
    _log: Log | None = field(default=None, init=False, repr=False)
    _stubs: dict[int, str] = field(default_factory=dict, init=False, repr=False)  # pid: model
    _reaping: Lock = field(default_factory=Lock, init=False, repr=False)  # held while the group's number becomes free

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
        return f"http://{network.local_address(self.http_host)}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """Where gRPC requests go."""
        return f"{'grpcs' if self.tls else 'grpc'}://{self.local_host}:{self.grpc_port}"

    @property
    def local_url(self) -> str:
        """Where this machine, which has no certificate to show, sends requests."""
        return self.http_url if self.tls else self.grpc_url

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads."""
        return f"http://{self.local_host}:{self.metrics_port}/metrics"

    @property
    def local_host(self) -> str:
        """The address of the server for this machine."""
        return network.local_address(self.host)

    @property
    def http_host(self) -> str:
        """The address that HTTP listens on."""
        return network.LOOPBACK if self.tls else self.host

    @property
    def ports(self) -> list[tuple[str, str, int]]:
        """Host, protocol and number of the HTTP, the gRPC and the metrics port."""
        return [
            (self.http_host, "HTTP", self.http_port),
            (self.host, "gRPC", self.grpc_port),
            (self.host, "metrics", self.metrics_port),
        ]

    @property
    def effective_defaults(self) -> OptionDefaults:
        """What holds for requests that leave options out: the operator's defaults, and those of the checkpoint."""
        return effective(self.defaults, self.repository)

    @property
    def pid(self) -> int:
        """Process and process group of the running server."""
        if self._process is None:
            raise ServerError("the server is not running: start it first")
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the server's own process runs."""
        return self._process is not None and self._exited() is None

    def start(self) -> None:
        """Start the process. `wait_ready` returns once it serves. Raises ServerError."""
        if self._process is not None:
            raise ServerError(f"the server runs already, as process {self.pid}: stop it first")
        if not self.repository.is_dir():
            raise ServerError(f"there is no model repository at {self.repository}: check the path")
        found = find_installation()
        self.http_port, self.grpc_port, self.metrics_port = network.free_ports(self.ports)
        if self._workspace is None:
            self._workspace = Workspace()
        if self._log is None:
            path = self.log_path or self._workspace.temporary / f"{self._workspace.name}.log"
            self._log = Log(path, show=self.show_log, keep=self.log_path is not None)
            self.log_path = self._log.path
        self._log.begin()
        pressure = self._workspace.folder / "backpressure"
        backpressure.create(pressure)
        self._process = subprocess.Popen(
            launched(self._command_line(found, self._workspace)),
            env=environment(found) | self._model_environment() | {backpressure.FILE: str(pressure)},
            cwd=ROOT,  # the sys.path of a model's process begins with its working folder
            stdin=subprocess.DEVNULL,
            stdout=self._log.file,
            stderr=subprocess.STDOUT,
            pass_fds=self._workspace.locks,
            start_new_session=True,
        )

    def wait_ready(self, timeout: float, waiting: Callable[[float], None] = lambda _: None) -> None:
        """Return once every model is ready; raise ServerError if that fails or takes longer than `timeout` seconds.

        Calls `waiting` at once, and then every WAITING_SECONDS, with the seconds that have passed.

        Triton may abort while it loads Python models (triton-inference-server/tensorrtllm_backend, issue 349). Then it
        is started once more.
        """
        began = time.monotonic()
        deadline = began + timeout
        started_again, told = False, 0.0
        waiting(told)
        while True:
            if not started_again and self._aborted():
                self.kill()
                self.start()
                started_again = True
            self.check()
            if self._is_ready():
                self.check()  # to remember which process serves which model
                return
            if time.monotonic() > began + told + WAITING_SECONDS:
                told += WAITING_SECONDS
                waiting(told)
            if time.monotonic() > deadline:
                raise self._failure(f"the server was not ready after {timeout:g} seconds")
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raise ServerError if the server died, or a process of one of its models, which Triton does not restart."""
        exited = self._exited()
        if self._log is not None:
            self._log.update()
        if exited is not None:
            killed = (exited.si_code, exited.si_status) == (os.CLD_KILLED, signal.SIGKILL)
            raise self._failure(_how_it_ended(exited), from_outside=killed)
        children = self._children()
        new = children.keys() - self._stubs.keys()
        self._stubs |= {pid: model for pid in new if (model := proc.stub_model(pid))}
        if dead := {pid for pid, state in children.items() if state == proc.ZOMBIE}:
            time.sleep(REAP_SECONDS)
            for pid in dead & self._dead_children():
                model = self._stubs.get(pid, "unknown")
                raise self._failure(f"the process of model '{model}' died, and Triton does not restart it")

    def halted(self) -> frozenset[str]:
        """The models whose processes a signal has stopped, or "tritonserver"."""
        processes = {self.pid: "tritonserver"} | self._stubs
        return frozenset(name for pid, name in processes.items() if proc.is_halted(pid))

    def working(self) -> frozenset[str]:
        """The models that compute at this moment, or would if they had a processor."""
        return frozenset(model for pid, model in self._stubs.items() if proc.is_working(pid))

    def metrics(self) -> Metrics:
        """What the metrics page says, read over a new connection. Raises OSError if no more files may be open."""
        status, page = network.get(self.local_host, self.metrics_port, "/metrics", METRICS_SECONDS)
        return Metrics.parse(page) if status == http.HTTPStatus.OK else Metrics()

    def stop(self) -> None:
        """Stop the server and remove what it left, whatever state it is in.

        Requests in flight have `exit_timeout` seconds. Over gRPC all of them are answered within it, and new ones are
        served meanwhile. Over HTTP Triton refuses new connections and waits for clients to hang up: it serves a
        connection that is kept alive until the time is over, and then cuts it.
        """
        self._end(gracefully=True)
        if self._workspace is not None:
            self._workspace.close()
            self._workspace = None
        if self._log is not None:
            self._log.close()
            if not self._log.keep:
                self.log_path = None
            self._log = None

    def kill(self) -> None:
        """End the server at once, in order to `start` it again on the same ports with the same log."""
        self._end(gracefully=False)

    def sigkill(self) -> None:
        """Send SIGKILL to the whole process group if it runs, from any thread. `kill` or `stop` must follow."""
        with self._reaping:
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self, *, gracefully: bool) -> None:
        """SIGTERM and time to finish, then SIGKILL for the whole group; then remove its shared memory.

        The leader is reaped last: until then nothing else can take its process group's number.
        """
        if self._process is not None:
            if gracefully and self._is_whole():  # else Triton would wait for the rest in vain
                os.kill(self.pid, signal.SIGTERM)
                self._wait_until_exited(self.exit_timeout + GRACE_SECONDS)
            os.killpg(self.pid, signal.SIGKILL)
            deadline = time.monotonic() + GRACE_SECONDS
            with suppress(OSError):  # no file may be opened to look: what follows waits for our children
                while open_files.retry(lambda: proc.running(self.pid)) and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
            with self._reaping:
                self._process.wait()
                while not proc.reap(self.pid) and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                self._process, self._stubs = None, {}
            if self._log is not None:
                self._log.show()
        if self._workspace is not None:
            self._workspace.remove_regions()

    def _is_whole(self) -> bool:
        """Whether all processes of the server live and none is halted, as far as one can see."""
        with suppress(OSError):
            return not open_files.retry(self._dead_children) and not self.halted()
        return False

    def _children(self) -> dict[int, str]:
        """The server's own children and their states."""
        group = proc.processes_of_group(self.pid)
        return {pid: process.state for pid, process in group.items() if process.parent == self.pid}

    def _dead_children(self) -> set[int]:
        return {pid for pid, state in self._children().items() if state == proc.ZOMBIE}

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
        status, _ = network.get(
            network.local_address(self.http_host), self.http_port, "/v2/health/ready", READY_SECONDS
        )
        return status == http.HTTPStatus.OK

    def _command_line(self, found: Installation, workspace: Workspace) -> list[str]:
        return arguments.command_line(self, found, workspace)

    def _model_environment(self) -> dict[str, str]:
        """What the models' processes shall log and trace."""
        return ({ENDPOINT: self.traces} if self.traces else {}) | {LOG_REQUESTS: "1" if self.log_requests else ""}

    def _failure(self, what: str, *, from_outside: bool = False) -> ServerError:
        """An error of one sentence, with the reason found in the log, which is then kept.

        If the reason came `from_outside`, the log does not have it.
        """
        log = ""
        if self._log is not None:
            self._log.keep = True
            log = "" if from_outside else self._log.read()
        reason = failed_model(log) or ": ".join(filter(None, [what, first_error(log)]))
        if self._workspace is not None:  # people know the repository itself, and not our link to it
            for name in (WITH_DEFAULTS, PLAIN):  # the one begins with the other
                reason = reason.replace(str(self._workspace.folder / name), str(self.repository))
        if "no GPUs are available" in reason:
            reason += ": choose the configuration cpu, or check that nvidia-smi works here"
        return ServerError(f"{reason} (log: {self.log_path})")


def _how_it_ended(exited: os.waitid_result) -> str:
    if exited.si_code == os.CLD_EXITED:
        return f"tritonserver exited by itself with status {exited.si_status}"
    return f"tritonserver was ended by signal {exited.si_status}"
