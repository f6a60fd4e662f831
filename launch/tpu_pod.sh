#!/bin/bash
# Trains on all hosts of a running TPU slice, started from a machine with gcloud:
#
#     launch/tpu_pod.sh my-v5e-16 us-west4-a \
#         --config=configs/df2_finetune.py --workdir=/mnt/shared/runs/df2
#
# The Cloud TPU API, which this calls, is no longer developed. launch/gke/tpu.yaml, and
# launch/skypilot/tpu.yaml with --infra=k8s, do without it.
#
# Copies the project's working tree, installs Python 3.11 (the images may have 3.10) and starts one
# process per host. Workdir and dataset lie on a disk that all hosts share, such as Filestore or a
# bucket mounted with gcsfuse. A run that is still active gets SIGTERM first, so that it saves and
# ends. So the same command resumes a run, after a preemption as well as after Ctrl-C.

set -euo pipefail

if (($# < 4)) || [[ $1 == -* || $2 == -* ]]; then
    echo "usage: $0 TPU_NAME ZONE --config=... --workdir=... [overrides]" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
project=$(cd "$(dirname "$0")/.." && pwd)

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
# Files that git tracks or does not ignore, so neither .venv nor runs.
git -C "$project" ls-files --cached --others --exclude-standard -z |
    tar -C "$project" --null --ignore-failed-read -czf "$archive" -T -
gcloud compute tpus tpu-vm scp "$archive" "$name:capret_jax.tar.gz" --zone="$zone" --worker=all

# The brackets keep the pattern from matching the command that holds it.
on_all_hosts '
    set -e
    pkill -TERM -f "[c]apret_jax.main" || true
    while pgrep -f "[c]apret_jax.main" >/dev/null; do sleep 1; done
    mkdir -p capret_jax
    tar -C capret_jax -xzf capret_jax.tar.gz
    cd capret_jax
    # Into a separate folder, since some images forbid installing into their Python.
    python3 -m pip install --quiet --upgrade --target .uv uv
    [ -x .venv/bin/python ] || .uv/bin/uv venv --quiet --python 3.11 .venv
    .uv/bin/uv pip install --quiet --python .venv/bin/python --editable ".[tpu]"
'

on_all_hosts "cd capret_jax && exec .venv/bin/python -m capret_jax.main --distributed $(printf '%q ' "$@")"
