#!/bin/bash
# Trains as one process of a Kubernetes job; takes the flags of capret_jax.main.
#
# A run that SIGTERM stops, as before its node is taken away, saves and exits with 0, which
# Kubernetes would take for the end of the training. Here it exits with 75, so that it is started
# again and resumes.

set -uo pipefail

stopping=0
stop() {
    stopping=1
    kill -TERM "$run"
}

python -m capret_jax.main "$@" &
run=$!
trap stop TERM
# A signal interrupts `wait` while the run still has to save.
wait "$run"
code=$?
while kill -0 "$run" 2>/dev/null; do
    wait "$run"
    code=$?
done

if ((stopping && code == 0)); then
    exit 75
fi
exit "$code"
