# SPDX-License-Identifier: Apache-2.0
"""The embedded server: `tritonserver` as a child process, and a supervisor that keeps it captioning.

    command.py         `blipstream serve`: the options
    checkpoint.py      build what is to be served
    welcome.py         what is printed once the server is ready
    supervisor.py      watch the server, restart it
    diagnosis.py       samples in, fault out
    canary.py          the supervisor's own requests
    health.py          what the supervisor knows, as pages; health_server.py answers with them
    clock_jumps.py     notice that the system clock was set
    triton.py          TritonServer: start, wait until ready, check, stop
    installation.py    find tritonserver, and the environment that it needs
    arguments.py       tritonserver's command line; launcher.py is what starts it
    workspace.py       its files in /tmp and /dev/shm; leftovers.py removes those of dead servers
    log.py             its log
    metrics.py         its metrics page
    proc.py            its processes, out of /proc
    network.py         ports and addresses; tls.py certificates
    open_files.py      the limit on open files

No module here imports torch.
"""
