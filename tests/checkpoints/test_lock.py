"""One run at a time writes into a workdir."""

import os
import signal
import subprocess
import sys

import pytest

from capret_jax.checkpoints.lock import sole_writer
from capret_jax.errors import InputError


def test_a_second_writer_is_refused(tmp_path):
    refused = pytest.raises(InputError, match="another run is training in")
    with sole_writer(tmp_path), refused, sole_writer(tmp_path):
        pass
    with sole_writer(tmp_path):
        pass


def test_a_killed_writer_leaves_no_lock(tmp_path):
    program = (
        "import pathlib, sys, time\n"
        "from capret_jax.checkpoints.lock import sole_writer\n"
        "with sole_writer(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another run is training"), sole_writer(tmp_path):
            pass
        os.kill(process.pid, signal.SIGKILL)
    with sole_writer(tmp_path):
        pass
