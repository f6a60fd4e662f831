"""Runs a config as several JAX processes on this machine, as a pod would on several hosts.

    python launch/local_processes.py 2 --config=configs/demo.py --workdir=runs/two

The first process prints; the others are silent unless they fail. SIGTERM is passed on to all of
them: they save and end. When a process fails, the others are killed, since they would wait for it
forever. The exit code is 0, or that of the process that failed first.
"""

import os
import signal
import socket
import subprocess
import sys
import time


def main() -> int:
    """Starts the processes and waits for them; returns the exit code."""
    if len(sys.argv) < 2 or not sys.argv[1].isdigit() or int(sys.argv[1]) < 1:
        print(f"usage: {sys.argv[0]} PROCESSES --config=... --workdir=...", file=sys.stderr)
        return 2
    count = int(sys.argv[1])
    coordinator = f"localhost:{_free_port()}"
    processes = [_start(index, count, coordinator) for index in range(count)]
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
    try:
        return _wait(processes)
    finally:
        for process in processes:
            process.kill()


def _start(index: int, count: int, coordinator: str) -> subprocess.Popen:
    flags = [
        f"--coordinator_address={coordinator}",
        f"--num_processes={count}",
        f"--process_id={index}",
    ]
    return subprocess.Popen([sys.executable, "-m", "capret_jax.main", *sys.argv[2:], *flags])


def _wait(processes: list[subprocess.Popen]) -> int:
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        for index, code in enumerate(codes):
            if code and code < 0:  # it could not say so itself
                name = signal.Signals(-code).name
                print(f"process {index} of {len(codes)} was ended by {name}", file=sys.stderr)
        if failed or all(code == 0 for code in codes):
            return failed[0] if failed else 0
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    os.environ.setdefault("JAX_CPU_COLLECTIVES_IMPLEMENTATION", "gloo")
    sys.exit(main())
