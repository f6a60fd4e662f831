"""The launch scripts, with fake commands in place of a cluster's."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# A program that writes its arguments to a file.
FAKE_PYTHON = '#!/bin/bash\nprintf "%s\\n" "$@" > arguments\n'


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Adds shell scripts to the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name: str, body: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    return add


@pytest.fixture
def pod(tmp_path, commands):
    """Two hosts behind a fake gcloud; their Python writes its arguments to a file."""
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for host in hosts:
        (host / "capret_jax" / ".uv" / "bin").mkdir(parents=True)
        uv = host / "capret_jax" / ".uv" / "bin" / "uv"
        uv.write_text(
            '#!/bin/bash\necho "$@" >> uv_calls\n'
            f"if [ $1 = venv ]; then mkdir -p .venv/bin; printf '%b' {shlex.quote(FAKE_PYTHON)} "
            "> .venv/bin/python; chmod +x .venv/bin/python; fi\n"
        )
        uv.chmod(0o755)
    listed = " ".join(str(host) for host in hosts)
    commands("pkill", 'echo "$@" >> pkill_calls; exit 1')
    commands("pgrep", "exit 1")
    commands("python3", "exit 0")
    commands(
        "gcloud",
        f"""case "$4" in
        scp) for host in {listed}; do cp "$5" "$host/${{6#*:}}"; done ;;
        ssh) for host in {listed}; do
               (cd "$host" && bash -c "${{8#--command=}}") || exit 1
             done ;;
        esac""",
    )
    return hosts


def start_pod(*arguments: str) -> subprocess.CompletedProcess:
    command = [str(ROOT / "launch" / "tpu_pod.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_pod_runs_the_project_on_every_host(pod):
    override = "--config.data.captions.template=a {category}; it's $new"
    flags = ["--config=configs/demo.py", "--workdir=/mnt/run", override]
    done = start_pod("slice", "zone-a", *flags)
    assert done.returncode == 0, done.stderr
    for host in pod:
        assert (host / "capret_jax" / "capret_jax" / "main.py").is_file()
        assert not (host / "capret_jax" / "runs").exists()
        calls = (host / "capret_jax" / "uv_calls").read_text()
        assert "venv --quiet --python 3.11 .venv" in calls
        assert "--editable .[tpu]" in calls
        arguments = (host / "capret_jax" / "arguments").read_text().splitlines()
        assert arguments == ["-m", "capret_jax.main", "--distributed", *flags]
        # An active run gets SIGTERM, to save its state.
        assert "-TERM" in (host / "pkill_calls").read_text()


def test_a_pod_without_a_zone_is_refused():
    done = start_pod("slice", "--config=configs/demo.py", "--workdir=x", "--config.seed=1")
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.fixture
def slurm(tmp_path, commands):
    """Starts the batch script with an `srun` that runs a fake command, as on one node."""
    commands("srun", 'shift 2; echo "$@" > command; exec bash fake_run')
    commands("scancel", 'echo "$@" > scancel_call; kill -TERM $(cat pid)')
    commands("scontrol", 'echo "$@" > scontrol_call')

    def start(run: str, *flags: str) -> subprocess.Popen:
        (tmp_path / "fake_run").write_text(f"echo $$ > pid\n{run}\n")
        return subprocess.Popen(
            ["bash", str(ROOT / "launch" / "slurm.sbatch"), *flags],
            cwd=tmp_path,
            env={**os.environ, "SLURM_JOB_ID": "7"},
        )

    return start


@pytest.mark.parametrize("code", [0, 2])
def test_a_slurm_job_ends_with_its_runs_exit_code(slurm, tmp_path, code):
    job = slurm(f"exit {code}", "--config=configs/demo.py", "--workdir=a b")
    assert job.wait(timeout=20) == code
    assert not (tmp_path / "scontrol_call").exists()
    command = (tmp_path / "command").read_text()
    assert command == (
        ".venv/bin/python -m capret_jax.main --distributed --config=configs/demo.py --workdir=a b\n"
    )


@pytest.mark.parametrize("code", [0, 1])
def test_a_slurm_job_that_is_stopped_is_requeued_once_it_has_saved(slurm, tmp_path, code):
    job = slurm(f"trap 'sleep 0.5; touch saved; exit {code}' TERM; while true; do sleep 0.1; done")
    while not (tmp_path / "pid").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == code
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "scancel_call").read_text() == "--signal=TERM 7\n"
    assert (tmp_path / "scontrol_call").exists() is (code == 0)


def test_processes_join_through_slurm_variables():
    program = (
        "import jax; from capret_jax.distributed.process_group import join; "
        "join(None, None, None, True); "
        "print('process', jax.process_index(), jax.process_count(), len(jax.devices()))"
    )
    # JAX derives the port from the job id.
    cluster = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={
                **os.environ,
                **cluster,
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": str(index),
                "SLURM_LOCALID": str(index),
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                "JAX_NUM_CPU_DEVICES": "2",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    # Only process 0 prints.
    assert printed == ["process 0 2 4\n", ""]
