#!/bin/sh
# Starts kvlab's server: sh scripts/run_server.sh [MODEL] [options of `kvlab serve`]
# MODEL, HOST, PORT and MODE may also come from the environment.
set -eu
case "${1:-}" in
    "" | -*) ;;
    *) MODEL=$1 && shift ;;
esac
exec "${PYTHON:-python3}" -m kvlab serve --model "${MODEL:-smollm2-135m}" \
    --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}" --mode "${MODE:-nvme}" "$@"
