"""Process group of a run on several hosts: joining it, and exit after an error."""

import atexit
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

# JAX has no public name for the client of its key-value store.
from jax._src import distributed

from capret_jax.distributed.lost_processes import LostProcesses
from capret_jax.distributed.sigterm import share_with_jax
from capret_jax.errors import InputError, causes, first_line

# JAX's own limit ends in an abort with a page of C++; ours comes first.
_JAX_LATER = 60
# Messages of JAX and Gloo about a process that is gone.
_LOST = re.compile(
    r"Gloo \w+ failed|closed by peer|reset by peer|heartbeat|Socket closed|Barrier .* failed", re.I
)
# Seconds without a sign of life after which a process counts as dead, and all others end.
_HEARTBEAT = 30
# Key of what all do after one process has ended before the others: an exit code and the reason.
_END = "capret_jax/end"
# Exit code of a process that ends because another one failed.
_FAILED = 2
# Seconds between two looks at it, and in which all processes look and end.
_WATCH_SECONDS, _SECONDS_TO_END = 0.5, 2
_REMEDY = "start all of them again to go on from the newest checkpoint"
# Set when this process ends.
_ending = threading.Event()
# Set when this process has reported the failure of another one.
_reported = threading.Event()
atexit.register(_ending.set)


def join(
    coordinator: str | None,
    count: int | None,
    index: int | None,
    cluster: bool = False,
    seconds: int = 300,
) -> None:
    """Joins the process group of the run, if there is one; after that only process 0 prints.

    Where not all processes come in time, it prints one line and ends the process with code 2.

    Args:
        coordinator: host:port of process 0; None without a group, or with `cluster`.
        count: number of processes; None without a coordinator.
        index: index of this process, from 0; None without a coordinator.
        cluster: True to read all three from Slurm, Open MPI or the metadata of a TPU pod.
        seconds: time within which all processes have to come.

    Raises:
        InputError: the arguments contradict each other, or there is no such cluster.
    """
    given = [value is not None for value in (coordinator, count, index)]
    if cluster and any(given):
        raise InputError(
            "--distributed takes the processes from the cluster: leave out --coordinator_address, "
            "--num_processes and --process_id, or --distributed."
        )
    if any(given) and not all(given):
        raise InputError(
            "--coordinator_address, --num_processes and --process_id belong together: give all or "
            "none; --distributed takes them from Slurm, Open MPI or a TPU pod."
        )
    if not (cluster or coordinator):
        return
    place = f" at {coordinator}" if coordinator else ""
    problem = (
        f"the {count or ''} processes did not all come together{place} within {seconds} s: start "
        "as many as announced, with the address of process 0, or raise --join_timeout"
    )
    watchdog = threading.Timer(seconds, _end, (" ".join(problem.split()),))
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=seconds + _JAX_LATER,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    except ValueError as error:
        remedy = "" if coordinator else "; start it with srun, mpirun or on a TPU pod"
        raise InputError(f"the processes cannot be joined: {error}{remedy}") from error
    finally:
        watchdog.cancel()
    share_with_jax()
    threading.Thread(target=_watch_for_failures, daemon=True).start()
    address = distributed.global_state.coordinator_address
    assert address is not None
    lost = LostProcesses(key_value_store(), address, _report_death)
    atexit.register(lost.say_farewell)
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def key_value_store() -> Any:
    """Returns the client of the key-value store that process 0 has for all processes."""
    return distributed.global_state.client


def _watch_for_failures() -> None:
    """Ends this process after another one has announced its failure.

    The main thread may wait for that process in a collective, and not every backend notices.
    """
    while not _ending.wait(_WATCH_SECONDS):
        try:
            notice = key_value_store().key_value_try_get(_END)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # process 0 is gone, or this process is about to end
        if not _ending.is_set():
            _end_because(notice)


def _end_because(notice: str) -> NoReturn:
    """Ends this process for a reason that lies in another one; see `_notice`."""
    _reported.set()
    code, reason = notice.split(" ", 1)
    word = "error" if int(code) else "stopped"
    # In one call, since JAX may be writing that it aborts.
    sys.stderr.write(f"{word}{process_label()}: {reason}; {_REMEDY}\n")
    sys.stderr.flush()
    # The others need process 0's key-value store to know, and to end in order.
    time.sleep(0 if jax.process_index() else _SECONDS_TO_END + _WATCH_SECONDS)
    os._exit(int(code))


def _report_death(index: int) -> None:
    """Tells all processes, or this one if it was process 0, that one died."""
    reason = "it was killed, crashed, or its host is gone"
    if index:
        _announce_end(index, 1, reason)
    elif not _ending.is_set():
        _end_because(_notice(0, 1, reason))  # before JAX's own abort has written its page


def _announce_end(index: int, code: int, line: str) -> bool:
    """Tells all processes why one ends; returns False if another one did before."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # announced, or process 0 is gone
        key_value_store().key_value_set(_END, _notice(index, code, line))
        return True
    return False


def _notice(index: int, code: int, line: str) -> str:
    """Returns the exit code of the others, and the reason for an exit with `code`."""
    place, reason = f"process {index} of {jax.process_count()}", line.rstrip(".")
    return f"{_FAILED if code else 0} {place} ended: {reason}"


def _end(problem: str) -> None:
    print(f"error: {problem}", file=sys.stderr, flush=True)
    os._exit(2)  # the main thread waits in C++


def process_label() -> str:
    """Returns " in process 1 of 2" for error messages; "" without a process group."""
    if not jax.distributed.is_initialized():
        return ""
    return f" in process {jax.process_index()} of {jax.process_count()}"


def describe_lost_process(error: BaseException) -> str | None:
    """Returns one line for a collective that failed because another process ended, else None.

    Args:
        error: an exception; its causes are searched, too.
    """
    for cause in causes(error) if jax.distributed.is_initialized() else ():
        if _LOST.search(str(cause)):
            if _reported.wait(_SECONDS_TO_END + _WATCH_SECONDS):
                threading.Event().wait()  # the thread that reports it ends this process
            return (
                f"another of the {jax.process_count()} processes ended, and has the reason in its "
                f"own output ({first_line(cause)}); {_REMEDY}"
            )
    return None


@contextlib.contextmanager
def end_unless_done(seconds: float, line: str) -> Iterator[None]:
    """Ends this process with code 2, and all others, if a `with` block takes longer than a limit.

    For collectives that follow a failure of this process, to which the others may not come.

    Args:
        seconds: the limit.
        line: the reason, which all processes print.
    """

    def end() -> None:
        print(f"error{process_label()}: {line}", file=sys.stderr, flush=True)
        exit_with_group(2, line)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def exit_with_group(code: int, line: str | None) -> NoReturn:
    """Ends this process and all others of its group, which print one line that names it.

    A process of a group ends at once: an orderly exit would wait for the others, which wait for
    this one in a collective.

    Args:
        code: the exit code; with 0 the others end with 0, too, otherwise with 2.
        line: the reason, for the other processes; None if they know it: another one ended first.
    """
    if not jax.distributed.is_initialized():
        sys.exit(code)
    sys.stderr.flush()
    _ending.set()
    if line is not None:
        announced = _announce_end(jax.process_index(), code, line)
        # Collectives fail as soon as a process is gone, and JAX may abort: first the others look.
        if announced or jax.process_index() == 0:
            time.sleep(_SECONDS_TO_END)
    os._exit(code)
