"""Process groups: contradicting flags, missing clusters, and processes that fail."""

import socket
import subprocess
import sys
import threading

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


def test_a_process_that_fails_ends_the_others_with_a_line_that_names_it():
    program = """
import sys, time
from capret_jax.command_line import run
from capret_jax.errors import InputError
from capret_jax.distributed.process_group import join

def main(argv):
    join(argv[1], 2, int(argv[2]), False)
    if argv[2] == "1":
        raise InputError("wrong here")
    time.sleep(60)

run(main)
"""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(index)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    )
    try:
        _, errors = second.communicate(timeout=30)
        assert second.returncode == 2
        assert errors.splitlines()[-1] == "error in process 1 of 2: wrong here"
        _, errors = first.communicate(timeout=5)
        assert first.returncode == 2
        assert errors.splitlines()[-1] == (
            "error in process 0 of 2: process 1 of 2 ended: wrong here; start all of them again to "
            "go on from the newest checkpoint"
        )
    finally:
        first.kill()
        first.communicate()


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
        process_group, "exit_after_error", lambda *reason: (codes.append(reason), ended.set())
    )
    with process_group.end_unless_done(60, "not this"):
        pass
    with process_group.end_unless_done(0.01, "the file cannot be read"):
        assert ended.wait(10)
    assert codes == [(2, "the file cannot be read")]
    assert capsys.readouterr().err == "error: the file cannot be read\n"
