"""Process group of a run on several hosts: joining it, and exit after an error."""

import os
import sys
from typing import NoReturn

import jax

from capret_jax.errors import InputError


def join(coordinator: str | None, count: int | None, index: int | None, cluster: bool) -> None:
    """Joins the process group of the run, if there is one; after that only process 0 prints.

    Args:
        coordinator: host:port of process 0; None without a group, or with `cluster`.
        count: number of processes; None without a coordinator.
        index: index of this process, from 0; None without a coordinator.
        cluster: True to read all three from Slurm, Open MPI or the metadata of a TPU pod.

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
    # Its handler of SIGTERM would replace `PreemptionSignal`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, count, index)
    except ValueError as error:
        remedy = "" if coordinator else "; start it with srun, mpirun or on a TPU pod"
        raise InputError(f"the processes cannot be joined: {error}{remedy}") from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def process_label() -> str:
    """Returns " in process 1 of 2" for error messages; "" without a process group."""
    if not jax.distributed.is_initialized():
        return ""
    return f" in process {jax.process_index()} of {jax.process_count()}"


def exit_after_error(code: int) -> NoReturn:
    """Ends this process with an exit code.

    A process of a group ends at once: an orderly exit would wait for the others, which wait for
    this one in a collective.
    """
    if not jax.distributed.is_initialized():
        sys.exit(code)
    sys.stderr.flush()
    os._exit(code)
