#!/bin/sh
# Packs this checkout with all it needs for `make check-gpu`, in parts of 60 MiB, for a
# GPU machine without a network. Run it with the Python version that is there.
#
#     make build/smollm2 && scripts/pack_gpu.sh PARTS [PYTHON]
#
# On the GPU machine, once all parts lie in one folder:
#
#     sh PARTS/unpack.sh FOLDER && cd FOLDER && .venv/bin/python scripts/check_gpu.py
set -eu
parts=$(mkdir -p "$1" && cd "$1" && pwd)
python=${2:-python3}
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --upgrade pip
# hatchling and editables build the package there.
"$work/venv/bin/pip" download --quiet --dest "$work/wheels" \
    '.[dev,hopper]' 'hatchling>=1.27' editables pip
git archive --format tar HEAD | tar -x -C "$work" --one-top-level=tree
mkdir -p "$work/tree/build"
cp -r build/smollm2 build/SmolLM2-135M-Instruct.Q4_1.gguf "$work/tree/build"
rm -f "$parts"/part-*
tar -C "$work" -c tree wheels | split -b 60M -d -a 3 - "$parts/part-"
cat >"$parts/unpack.sh" <<'UNPACK'
#!/bin/sh
# sh unpack.sh FOLDER [PYTHON]
set -eu
parts=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"
cat "$parts"/part-* | tar -x
mv tree/* tree/.[!.]* . && rmdir tree
"${2:-python3}" -m venv .venv
offline="--quiet --no-index --find-links wheels"
# shellcheck disable=SC2086 # several words
.venv/bin/pip install $offline --upgrade pip hatchling editables
# shellcheck disable=SC2086
.venv/bin/pip install $offline --no-build-isolation --editable '.[dev,hopper]'
rm -r wheels
UNPACK
ls -l "$parts"
