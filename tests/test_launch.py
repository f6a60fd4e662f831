"""Launch scripts with fake commands in place of a cluster's, manifests, and images."""

import copy
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from capret_jax import main
from capret_jax.config import ExperimentConfig, from_config_dict

ROOT = pathlib.Path(__file__).parent.parent
# A program that writes its arguments to a file.
FAKE_PYTHON = '#!/bin/bash\nprintf "%s\\n" "$@" > arguments\n'


def parse_flags(arguments: list[str]) -> tuple[ExperimentConfig, flags.FlagValues]:
    """Parses arguments as `python -m capret_jax.main` does, without setting its flags."""
    values = flags.FlagValues()
    for flag in flags.FLAGS.get_key_flags_for_module(main.__name__):
        if flag.name != "config":  # its overrides are flags of the same `FlagValues`
            values[flag.name] = copy.deepcopy(flag)
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    assert values(["main", *arguments]) == ["main"]
    return from_config_dict(config.value), values


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
    commands(
        "srun",
        'shift 2; echo "$@" > command; echo "$JAX_LOCAL_DEVICE_IDS" > gpus; exec bash fake_run',
    )
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


@pytest.mark.parametrize(
    "per_node, given, gpus", [("1", "", "0,1,2,3"), ("1", "2,3", "2,3"), ("4", "", "")]
)
def test_a_process_of_slurm_has_one_gpu_or_all_of_its_node(
    slurm, tmp_path, monkeypatch, per_node, given, gpus
):
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", per_node)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", given)
    assert slurm("exit 0").wait(timeout=20) == 0
    assert (tmp_path / "gpus").read_text().strip() == gpus


@pytest.fixture
def pod_script(tmp_path, commands):
    """Starts the command of a Kubernetes pod, with a shell script as its Python."""

    def start(python: str, *arguments: str) -> subprocess.Popen:
        commands("python", f"{FAKE_PYTHON.splitlines()[1]}\necho $$ > pid\n{python}")
        script = ROOT / "launch" / "gke" / "run.sh"
        return subprocess.Popen([str(script), *arguments], cwd=tmp_path)

    return start


@pytest.mark.parametrize("code", [0, 2])
def test_a_pod_ends_with_its_runs_exit_code(pod_script, tmp_path, code):
    assert pod_script(f"exit {code}", "--workdir=a b").wait(timeout=20) == code
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments == ["-m", "capret_jax.main", "--workdir=a b"]


@pytest.mark.parametrize("code, expected", [(0, 75), (1, 1)])
def test_a_pod_that_is_stopped_saves_and_is_to_be_started_again(
    pod_script, tmp_path, code, expected
):
    stop = f"trap 'sleep 0.3; touch saved; exit {code}' TERM; touch ready"
    job = pod_script(f"{stop}; while true; do sleep 0.1; done")
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == expected
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_a_manifest_has_a_process_for_each_host(name):
    manifest = yaml.safe_load((ROOT / "launch" / "gke" / f"{name}.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert {x["name"] for x in container["volumeMounts"]} == {x["name"] for x in pod["volumes"]}
    assert os.access(ROOT / container["command"][0], os.X_OK)
    config, values = parse_flags([x.replace("$(PROCESS_ID)", "1") for x in container["args"]])
    (chips,) = container["resources"]["limits"].values()
    if name == "tpu":
        topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
        rows, columns = map(int, topology.split("x"))
        assert values["distributed"].value and job["parallelism"] * chips == rows * columns
    else:
        variables = {x["name"]: x.get("value") for x in container["env"]}
        assert variables["JAX_LOCAL_DEVICE_IDS"] == ",".join(map(str, range(chips)))
        assert "PROCESS_ID" in variables and values["process_id"].value == 1
        assert values["num_processes"].value == job["parallelism"]
        first_pod = f"{manifest['metadata']['name']}-{replicated['name']}-0-0"
        coordinator = f"{first_pod}.{manifest['metadata']['name']}:8476"
        assert values["coordinator_address"].value == coordinator
    assert config.batch_size % (job["parallelism"] * chips) == 0


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_a_skypilot_task_trains_on_every_node(name, tmp_path):
    task = yaml.safe_load((ROOT / "launch" / "skypilot" / f"{name}.yaml").read_text())
    assert task["file_mounts"]["/bucket"]["source"] == "${BUCKET}" and "BUCKET" in task["envs"]
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    cluster = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    environment = {**os.environ, **task["envs"], **cluster}
    subprocess.run(["bash", "-euc", task["run"]], cwd=tmp_path, env=environment, check=True)
    subprocess.run(["bash", "-n", "-c", task["setup"]], check=True)
    module, program, *arguments = (tmp_path / "arguments").read_text().splitlines()
    assert (module, program) == ("-m", main.__name__)
    config, values = parse_flags(arguments)
    assert values["workdir"].value == "/bucket/runs/df2" and config.init_from.startswith("/bucket")
    extra = {"tpu": "tpu", "gpu": "cuda"}[name]
    assert f'--editable ".[{extra}]"' in task["setup"] and extra in extras()
    assert values["distributed"].value == (name == "tpu")
    if name == "gpu":
        assert values["coordinator_address"].value == "10.0.0.1:8476"
        assert (values["num_processes"].value, values["process_id"].value) == (2, 1)


def extras() -> set[str]:
    """Returns the names of the package's extras."""
    return set(re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))


def test_images_are_built_from_what_is_here_and_run_without_root():
    text = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ")
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    bases = {re.search(r" AS (\w+)", stage).group(1): stage.split()[0] for stage in stages}
    assert bases["base"] == "python:3.11-slim-bookworm"
    assert [name for name, base in bases.items() if base == "base"] == ["tpu", "cuda", "cpu"]
    # The last user that a stage sets is that of its images.
    assert re.findall(r"^USER (.+)", text, re.MULTILINE) == ["1000"]
    for sources in re.findall(r"^COPY (?:--chown=\S+ )?(?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    for names in re.findall(r'--editable "\.\[(.+)\]"', text):
        assert set(names.split(",")) <= extras()


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
