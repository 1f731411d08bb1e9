#!/bin/sh
# Builds ik_llama.cpp for this CPU, and the benchmark's worker on it, into
# build/ik_llama. Needs git, cmake and a C++ compiler; takes half an hour on 2 cores.
#
#     scripts/build_ik_llama.sh [CHECKOUT]    # of ik_llama.cpp; else it is cloned
set -eu
COMMIT=8337e4cd3861406fc04e0854b1409cd1b027fbc9
here=$PWD
cd "$(dirname "$0")/.."
target=$PWD/build/ik_llama
mkdir -p "$target"
source=$target/source
if [ $# -gt 0 ]; then
    # As the user sees it, from where he stands.
    case $1 in
    /*) source=$1 ;;
    *) source=$here/$1 ;;
    esac
    if [ ! -f "$source/CMakeLists.txt" ]; then
        echo "$source has no CMakeLists.txt: give a checkout of ik_llama.cpp, or none." >&2
        exit 1
    fi
fi
# Not the folder, nor a file in it: what was cut off leaves those.
if [ $# -eq 0 ] && [ ! -f "$target/cloned" ]; then
    git init --quiet "$source"
    git -C "$source" fetch --quiet --depth 1 \
        https://github.com/ikawrakow/ik_llama.cpp "$COMMIT"
    git -C "$source" checkout --quiet --force FETCH_HEAD
    touch "$target/cloned"
fi
# What is measured has to be what the figures name. The ceiling keeps git from taking
# the repository around a checkout for it.
found=$(GIT_CEILING_DIRECTORIES=$(cd "$source/.." && pwd) \
    git -C "$source" rev-parse HEAD 2>/dev/null || true)
if [ "$found" != "$COMMIT" ]; then
    echo "$source is at ${found:-no commit}, and $COMMIT is measured." >&2
    echo "Check that out there (git checkout $COMMIT), or give no CHECKOUT." >&2
    exit 1
fi
cmake -S "$source" -B "$target/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
cmake --build "$target/build" --target llama --parallel "$(nproc)"
set --
while read -r library; do
    set -- "$@" "-Wl,-rpath,${library%/*}" "$library"
done <<LIBRARIES
$(find "$target/build" -name '*.so')
LIBRARIES
c++ -O2 -std=c++17 -I "$source/include" -I "$source/ggml/include" \
    benchmarks/ik_llama_worker.cpp -o "$target/worker" "$@"
echo "$COMMIT" >"$target/commit" # for the reports of benchmarks/cpu.py
echo "$target/worker"
