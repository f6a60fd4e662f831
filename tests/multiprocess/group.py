"""Groups of JAX processes on this machine."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def run_group(arguments: list[str], count: int, devices: int = 1) -> None:
    """Runs Python with the same arguments in every process, and waits for all.

    Args:
        arguments: arguments of Python; the coordinator's address, `count` and the index of the
            process come after them.
        count: number of processes.
        devices: number of devices of each.

    Raises:
        AssertionError: a process failed.
    """
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments, address, str(count), str(index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
