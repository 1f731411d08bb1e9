#!/bin/sh
# Builds ik_llama.cpp for this CPU, and the benchmark's worker on it, into
# build/ik_llama. Needs git, cmake and a C++ compiler; takes half an hour on 2 cores.
#
#     scripts/build_ik_llama.sh [CHECKOUT]    # of ik_llama.cpp; else it is cloned
set -eu
COMMIT=8337e4cd3861406fc04e0854b1409cd1b027fbc9
cd "$(dirname "$0")/.."
target=build/ik_llama
mkdir -p "$target"
source=${1:-$target/source}
if [ $# -gt 0 ] && [ ! -f "$source/CMakeLists.txt" ]; then
    echo "$source has no CMakeLists.txt: give a checkout of ik_llama.cpp, or none." >&2
    exit 1
fi
# Not the folder: a fetch that failed leaves that.
if [ ! -f "$source/CMakeLists.txt" ]; then
    git init --quiet "$source"
    git -C "$source" fetch --quiet --depth 1 \
        https://github.com/ikawrakow/ik_llama.cpp "$COMMIT"
    git -C "$source" checkout --quiet FETCH_HEAD
fi
cmake -S "$source" -B "$target/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
cmake --build "$target/build" --target llama --parallel
libraries=$(find "$PWD/$target/build" -name '*.so' -printf '-Wl,-rpath,%h %p ')
# shellcheck disable=SC2086 # several words
c++ -O2 -std=c++17 -I "$source/include" -I "$source/ggml/include" \
    benchmarks/ik_llama_worker.cpp -o "$target/worker" $libraries
echo "$target/worker"
