#!/bin/bash
# Packs this checkout with all it needs for `make check-gpu`, in parts of 54 MiB, for a
# GPU machine without a network. Takes ten minutes on two cores; 350 MB.
#
#     make build/smollm2 && scripts/pack_gpu.sh PARTS [PYTHON]
#
# PARTS is a folder that is empty, or not there yet. PYTHON must be of the version that
# the GPU machine has, such as 3.12: what is packed runs on no other, and says so.
# PARTS/python-version has it. On the GPU machine, once all of PARTS lies in a folder:
#
#     sh PARTS/unpack.sh FOLDER && sh FOLDER/check.sh --jobs 4
#
# cuBLAS is not among it: a GPU machine has it, with CUDA or with torch.
set -euo pipefail
stop() {
    echo "$1" >&2
    exit 1
}
[ $# -eq 1 ] || [ $# -eq 2 ] || stop "usage: scripts/pack_gpu.sh PARTS [PYTHON]"
python=$(command -v "${2:-python3}") || stop "There is no ${2:-python3}: give a PYTHON."
[ "${python:0:1}" = / ] || python=$PWD/$python # as seen from here
# A name may be there and nothing behind it, as of a version manager's.
version=$("$python" -V 2>&1) && [[ $version =~ ^Python\ (3\.[0-9]+) ]] ||
    stop "$python -V should print Python 3 and so on, and prints: ${version:-nothing}.
Give a PYTHON that runs, of the version that the GPU machine has."
version=${BASH_REMATCH[1]}
parts=$(mkdir -p "$1" && cd "$1" && pwd)
[ -z "$(ls -A "$parts")" ] || stop "$parts is not empty: empty it, or give another."
cd "$(dirname "$0")/.."
model=build/smollm2 gguf=build/SmolLM2-135M-Instruct.Q4_1.gguf
for made in "$model/config.json" "$gguf"; do
    [ -e "$made" ] || stop "$PWD/$made is missing: run make build/smollm2 first."
done
changed=$(git status --porcelain)
[ -z "$changed" ] || stop "What is packed is the last commit, without these changes:
$changed
Commit them, or put them away (git stash --include-untracked), and run this again."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
pip="$work/venv/bin/pip"
"$pip" install --quiet --upgrade pip
"$pip" install --quiet --no-compile '.[dev]'
# What checks sources, and the package itself, which runs from the checkout.
"$pip" uninstall --quiet --yes mypy ruff import-linter grimp max_mistral
# Of MAX's optional parts, for video, which no check reads.
"$pip" uninstall --quiet --yes av
mkdir -p "$work/tree/build" "$work/tree/site/bin" "$work/tree/site/av"
: >"$work/tree/site/av/__init__.py"
cp -r "$work"/venv/lib/python3*/site-packages/. "$work/tree/site"
rm -rf "$work/tree/site/pip"
sed '1s|.*|#!/usr/bin/env python3|' "$work/venv/bin/max" >"$work/tree/site/bin/max"
chmod +x "$work/tree/site/bin/max"
git archive --format tar HEAD | tar -x -C "$work/tree"
git rev-parse HEAD >"$work/tree/COMMIT" # see workbench/record.py
cp -r "$model" "$gguf" "$work/tree/build"
# Begins both scripts that run on the GPU machine.
find_python=$(
    cat <<FIND
#!/bin/sh
set -eu
wanted=$version
FIND
    cat <<'FIND'
python=
for name in "python$wanted" python3; do
    found=$("$name" -V 2>&1) || found="not there"
    case $found in "Python $wanted" | "Python $wanted."*)
        python=$(command -v "$name")
        break
        ;;
    esac
done
if [ -z "$python" ]; then
    echo "This was packed for Python $wanted. There is no python$wanted here, and" \
        "python3 is $found. Install python$wanted, or pack again with a Python" \
        "of this machine's version: scripts/pack_gpu.sh PARTS PYTHON." >&2
    exit 1
fi
FIND
)
cat >"$work/tree/check.sh" <<CHECK
$find_python
CHECK
cat >>"$work/tree/check.sh" <<'CHECK'
# sh check.sh FLAGS: scripts/check_gpu.py on what lies beside it.
cd "$(dirname "$0")"
# What starts python3, as site/bin/max does, gets the same.
printf '#!/bin/sh\nexec "%s" "$@"\n' "$python" >site/bin/python3
chmod +x site/bin/python3
export PYTHONPATH="$PWD:$PWD/site" PATH="$PWD/site/bin:$PATH" HF_HUB_OFFLINE=1
exec "$python" scripts/check_gpu.py "$@"
CHECK
echo "$version" >"$parts/python-version"
tar -C "$work/tree" -c . | xz -T0 -6 | split -b 54M -d -a 3 - "$parts/part-"
cat >"$parts/unpack.sh" <<UNPACK
$find_python
UNPACK
cat >>"$parts/unpack.sh" <<'UNPACK'
[ $# -eq 1 ] || { echo "usage: sh unpack.sh FOLDER" >&2 && exit 1; }
mkdir -p "$1"
cat "$(dirname "$0")"/part-* | xz -dc -T0 | tar -x -C "$1"
UNPACK
ls -l "$parts"
