#!/bin/sh
# Makes the environment of the peers: sh benches/peers/install.sh DIRECTORY PYTHON
# PYTHON is kvlab's; the new environment sees its packages, and nothing goes into it. What cannot be installed is named;
# its arms then say so instead of a figure.
set -eu

directory=$1
python=$2
here=$(dirname "$0")

[ -x "$directory/bin/python" ] || "$python" -m venv "$directory"
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# addsitedir, unlike a bare path, heeds the .pth file by which kvlab itself is installed.
printf 'import site; site.addsitedir("%s")\n' "$packages" > "$own/kvlab-environment.pth"

install() {
    "$directory/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps "$@"
}

echo "kvlab: the peers take about 0.7 GB of downloads and 1.5 GB in $directory, and their Rust build 0.3 GB in target/peers"
if ! install -r "$here/requirements.txt"; then
    grep -v '^#' "$here/requirements.txt" | while read -r requirement; do
        install "$requirement" || echo "kvlab: not installed: $requirement" >&2
    done
fi
"$directory/bin/python" -c 'import mooncake.store' 2>/dev/null \
    || echo "kvlab: Mooncake does not load; on Debian: apt-get install libibverbs1" >&2
cargo build --release --locked --manifest-path "$here/rust/Cargo.toml" --target-dir target/peers \
    || echo "kvlab: the stores written in Rust could not be built" >&2
