"""Process groups: contradicting flags, missing clusters, and processes that fail."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from capret_jax.distributed import process_group
from capret_jax.distributed.process_group import describe_lost_process, join, process_label
from capret_jax.errors import InputError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("localhost:1", 2, None, False), "belong together"),
        ((None, 2, 0, False), "belong together"),
        (("localhost:1", 2, 0, True), "or --distributed"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        join(*arguments)


def test_processes_that_cannot_be_joined_are_refused():
    # In a process of its own, since joining has to come before the first use of a device.
    program = """
from capret_jax.errors import InputError
from capret_jax.distributed.process_group import join

for arguments in (("localhost:1", 2, 2, False), (None, None, None, True)):
    try:
        join(*arguments)
    except InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    index, cluster = done.stdout.splitlines()
    assert "process_id < num_processes" in index
    assert cluster.endswith("start it with srun, mpirun or on a TPU pod")


def test_a_process_on_its_own_has_no_label():
    join(None, None, None, False)
    assert process_label() == ""


@pytest.mark.parametrize(
    "end, code, here, there",
    [
        (
            'raise InputError("wrong here")',
            2,
            "error in process 1 of 2: wrong here",
            "error in process 0 of 2: process 1 of 2 ended: wrong here",
        ),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGTERM)",
            0,
            "",
            "stopped in process 0 of 2: process 1 of 2 ended: stopped by SIGTERM",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["failure", "SIGTERM"],
)
def test_a_process_that_ends_early_ends_the_others_with_a_line_that_names_it(
    end, code, here, there
):
    program = """
import os, signal, sys, time
from capret_jax.command_line import run
from capret_jax.errors import InputError
from capret_jax.distributed.process_group import exit_with_group, join

def main(argv):
    # As in `main`; it has to outlive the handler of JAX's preemption service.
    signal.signal(signal.SIGTERM, lambda *_: exit_with_group(0, "stopped by SIGTERM"))
    join(argv[1], 2, int(argv[2]), False)
    if argv[2] == "1":
        exec(END)
    time.sleep(60)

END = sys.argv.pop()
run(main)
"""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(index), end],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    )
    try:
        _, errors = second.communicate(timeout=30)
        assert second.returncode == code
        assert errors.splitlines()[-1:] == ([here] if here else [])
        _, errors = first.communicate(timeout=5)
        assert first.returncode == code
        assert errors.splitlines()[-1] == (
            f"{there}; start all of them again to go on from the newest checkpoint"
        )
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_sigterm_stops_all_and_a_killed_process_ends_the_others_with_its_name(killed):
    """One group for both, since it takes seconds to start."""
    program = """
import os, signal, sys, time
from capret_jax.command_line import run
from capret_jax.distributed.process_group import join

def main(argv):
    join(argv[1], 2, int(argv[2]))
    import jax.numpy as jnp
    from jax.experimental import multihost_utils
    from capret_jax.train.preemption import PreemptionSignal
    with PreemptionSignal(100) as preemption:  # a resumed run
        if argv[2] == "1":  # before its first step
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)  # as if compiling: JAX looks for the signal every second
        for step in range(101, 400):
            time.sleep(0.1)
            if preemption.stops_after(step):
                break
        print(step, preemption.received(), file=sys.stderr, flush=True)
    if argv[2] == "1":
        time.sleep(60)
    multihost_utils.process_allgather(jnp.zeros(1))

run(main)
"""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(index)],
            env={
                **os.environ,
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                "TF_CPP_MIN_LOG_LEVEL": "2",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        lines = [process.stderr.readline() for process in processes if process.stderr]
        assert lines[0] == lines[1]
        step, received = lines[0].split()
        assert 101 <= int(step) < 399 and received == "True"
        processes[killed].kill()
        start = time.monotonic()
        _, errors = processes[1 - killed].communicate(timeout=60)
        assert time.monotonic() - start < 15, "JAX itself notices after 30 seconds"
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    line = (
        f"error in process {1 - killed} of 2: process {killed} of 2 ended: it was killed, "
        "crashed, or its host is gone; start all of them again to go on from the newest checkpoint"
    )
    ours = [line for line in errors.splitlines() if line.startswith("error")]
    assert ours == [line]
    if killed:
        assert processes[0].returncode == 2
        assert errors.splitlines() == [line]
    else:  # JAX aborts as soon as its connection to process 0 breaks, too
        assert processes[1].returncode in (2, -signal.SIGABRT)


@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_do_not_come_end_in_one_line(index):
    with socket.socket() as free_port:
        free_port.bind(("127.0.0.1", 0))
        port = free_port.getsockname()[1]
    program = (
        "from capret_jax.distributed.process_group import join\n"
        f"join('127.0.0.1:{port}', 2, {index}, seconds=1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: the 2 processes did not all come together at 127.0.0.1:{port} within 1 s: start "
        "as many as announced, with the address of process 0, or raise --join_timeout"
    ]


def test_the_end_of_another_process_is_one_line(monkeypatch):
    monkeypatch.setattr(process_group, "_SECONDS_TO_END", 0)
    monkeypatch.setattr(process_group, "_WATCH_SECONDS", 0)
    error = RuntimeError(
        "UNKNOWN: Gloo AllGather failed: Connection closed by peer [10.0.0.2]:7\nx"
    )
    assert describe_lost_process(error) is None, "without a group it is another error"
    monkeypatch.setattr(process_group.jax.distributed, "is_initialized", lambda: True)
    line = describe_lost_process(error)
    assert line is not None
    assert line.startswith("another of the 1 processes ended")
    assert "[10.0.0.2]:7)" in line and "\n" not in line
    assert describe_lost_process(ValueError("a bug")) is None


def test_a_block_that_takes_too_long_ends_the_process(monkeypatch, capsys):
    ended = threading.Event()
    codes = []
    monkeypatch.setattr(
        process_group, "exit_with_group", lambda *reason: (codes.append(reason), ended.set())
    )
    with process_group.end_unless_done(60, "not this"):
        pass
    with process_group.end_unless_done(0.01, "the file cannot be read"):
        assert ended.wait(10)
    assert codes == [(2, "the file cannot be read")]
    assert capsys.readouterr().err == "error: the file cannot be read\n"
