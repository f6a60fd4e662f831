"""The processes of one run on several hosts: joining them, and leaving them when one fails."""

import os
import sys
from typing import NoReturn

import jax

from capret_jax.errors import InputError


def join(coordinator: str | None, count: int | None, index: int | None, cluster: bool) -> None:
    """Joins the run's other processes, if it has any; of all of them process 0 prints.

    Args:
        coordinator: host:port of process 0; None for a process on its own.
        count: processes in all; with a coordinator.
        index: which of them this is; with a coordinator.
        cluster: take all that from Slurm, Open MPI or a TPU pod's metadata instead.

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
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, count, index)
    except ValueError as error:
        remedy = "" if coordinator else "; start it with srun, mpirun or on a TPU pod"
        raise InputError(f"the processes cannot be joined: {error}{remedy}") from error
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def label() -> str:
    """ " in process 1 of 2" when there are several, for messages."""
    if not jax.distributed.is_initialized():
        return ""
    return f" in process {jax.process_index()} of {jax.process_count()}"


def leave(code: int) -> NoReturn:
    """Ends this process because of an error.

    Among several it ends at once: an orderly exit would wait for the others, which wait for this
    one in a collective.
    """
    if not jax.distributed.is_initialized():
        sys.exit(code)
    sys.stderr.flush()
    os._exit(code)
