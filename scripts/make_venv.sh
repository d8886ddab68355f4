#!/bin/sh
# Makes the virtual environment: sh scripts/make_venv.sh DIRECTORY [flags of python -m venv]
# PYTHON may name the interpreter; otherwise the first Python >= 3.11 on the PATH is taken.
set -eu

directory=$1
shift

fail() {
    printf 'kvlab: %s\n' "$@" >&2
    exit 1
}

recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

if ! command -v cargo >/dev/null 2>&1; then
    fail "cargo is missing: the core is written in Rust." \
        "Install the stable toolchain (https://rustup.rs, or your system's rustup package), open a new shell, run make again."
fi
if ! command -v cc >/dev/null 2>&1; then
    fail "cc is missing: Rust needs a C linker. Install your system's C compiler (Debian: apt install gcc; macOS: xcode-select --install)."
fi

python=${PYTHON:-}
if [ -n "$python" ]; then
    recent "$python" || fail "PYTHON=$python is not a Python >= 3.11."
else
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if recent "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "no Python >= 3.11 was found. Install one, or name it: make PYTHON=/path/to/python3 ..."
fi

printf 'kvlab: making %s with %s\n' "$directory" "$("$python" --version)"
"$python" -m venv "$@" "$directory" || {
    rm -rf "$directory"
    fail "$python -m venv failed: see above (Debian and Ubuntu keep it in the package python3-venv)."
}
