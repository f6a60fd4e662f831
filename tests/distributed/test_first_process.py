"""Work that process 0 does for all processes."""

import socket
import subprocess
import sys

import pytest

from capret_jax.distributed import first_process
from capret_jax.distributed.first_process import first_process_only
from tests.conftest import ROOT

PROGRAM = """
import sys, time
from capret_jax.command_line import run
from capret_jax.distributed import first_process
from capret_jax.distributed.process_group import join

first_process._REQUEST = 200  # milliseconds, fewer than process 0 takes

def slow():
    time.sleep(1)
    return {"mAP": 0.1}

def main(argv):
    join(argv[1], 2, int(argv[2]))
    print(first_process.first_process_only(slow), file=sys.stderr)
    first_process.first_process_only(lambda: 1 // 0)

run(main)
"""


def test_one_process_calls_the_function():
    assert first_process_only(lambda: {"mAP": 0.5}) == {"mAP": 0.5}


@pytest.mark.slow
def test_the_others_wait_for_the_result_and_end_when_there_is_none():
    assert first_process._REQUEST > 1000, "each request is answered by process 0"
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        lines = [process.communicate(timeout=60)[1].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 2]
    assert all("{'mAP': 0.1}" in printed for printed in lines)
    assert "process 0 of 2 ended: ZeroDivisionError" in lines[1][-1]
    assert len(lines[1]) == 2
