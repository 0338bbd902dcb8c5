#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds, tests and measures copipe on a machine with a GPU, in under ten minutes, without network and without CMake.
#   bench/gpu.sh FOLDER    writes raw numbers (CSV), logs and the machine's description there; prints a short table last
# Needs g++ 12 or newer (or CXX), CUDA's toolkit with cuBLASLt, and Boost's headers: installed, named by BOOST_ROOT, or
# in a folder boost or boost/include in or beside the checkout. The tests need Catch2's header and a CBLAS as well, and
# are left out without them. CUDA_ARCH names another GPU than Hopper's sm_90. Exit code: 0 measured, 77 no GPU.
set -uo pipefail
export LC_ALL=C

if (($# != 1)) || [[ $1 == -* ]]; then
    sed -n '3,7p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
say() { printf 'bench/gpu.sh: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 2
}

# left N: seconds that remain of ten minutes, when what follows takes N; at least 1.
left() { echo $((595 - SECONDS > $1 ? 595 - SECONDS - $1 : 1)); }

CXX=${CXX:-g++}
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || die "nvcc was not found: put CUDA's bin on PATH."
cuda=$(cd "$(dirname "$(readlink -f "$nvcc")")/.." && pwd)
[[ -e $cuda/include/cublasLt.h ]] || cuda=${CUDA_HOME:-/usr/local/cuda}
library=$cuda/lib64
[[ -e $library ]] || library=$cuda/lib

has_header() { printf '#include <%s>\n' "$1" | "$CXX" -std=c++20 "${include[@]}" -E -x c++ - >/dev/null 2>&1; }
include=(-Iinclude -Iexamples -Ibench -Itests -isystem "$cuda/include")
for folder in "${BOOST_ROOT-}" "${BOOST_ROOT-}/include" boost boost/include . ../boost ../boost/include .. \
    build/boost/usr/include; do
    if [[ -e $folder/boost/asio.hpp ]]; then
        include+=(-isystem "$folder")
        break
    fi
done
has_header boost/asio.hpp || die "Boost's headers were not found: install them, or name them by BOOST_ROOT."

build=$out/build
mkdir -p "$build"
flags=(-std=c++20 -O2 -pthread "${include[@]}")
# compile FILE: in the background; a failure shows when all are joined.
compile() {
    local object
    object=$build/$(basename "$1").o
    case $1 in
    *.cu) "$nvcc" -std=c++20 -O3 -arch="${CUDA_ARCH:-sm_90}" -Iexamples -c "$1" -o "$object" ;;
    *) "$CXX" "${flags[@]}" -c "$1" -o "$object" ;;
    esac >"$build/$(basename "$1").log" 2>&1 || {
        cat "$build/$(basename "$1").log" >&2
        return 1
    }
}
compile_all() {
    local jobs=() file job failed=0
    for file in "$@"; do
        while (($(jobs -rp | wc -l) >= ${JOBS:-$(nproc)})); do sleep 0.2; done
        compile "$file" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || failed=1; done
    return "$failed"
}
link() {
    "$CXX" "${@:2}" -o "$build/$1" -L"$library" -Wl,-rpath,"$library" -lcublasLt -lcudart_static -ldl -lrt -pthread
}

sources=(bench/gpu/gpu.cpp examples/gpt/cuda/kernels.cu examples/gpt/cuda/products.cpp)
cblas=
for each in openblas cblas mkl_rt; do
    if printf 'int main() {}' | "$CXX" -x c++ - -l"$each" -o "$build/probe" 2>/dev/null; then
        cblas=$each
        break
    fi
done
tests=
if [[ $cblas ]] && has_header cblas.h && has_header catch2/catch.hpp; then
    tests=yes
    sources+=(examples/gpt/kernels.cpp tests/gpu/main.cpp tests/gpu/layers.test.cpp tests/gpu/training.test.cpp)
else
    say "the tests are left out: they need catch2/catch.hpp, cblas.h and a CBLAS"
fi
say "building (logs in $build)"
compile_all "${sources[@]}" || die "it could not be built."
link bench_gpu "$build"/{gpu.cpp,kernels.cu,products.cpp}.o || die "it could not be linked."

{
    date -u +%FT%TZ
    git log -1 --format='commit %H' 2>/dev/null
    "$CXX" --version | head -n 1
    "$nvcc" --version | tail -n 2
    nvidia-smi 2>/dev/null
} >"$out/machine.txt"

if [[ $tests ]]; then
    objects=("$build"/{main.cpp,layers.test.cpp,training.test.cpp,kernels.cu,products.cpp,kernels.cpp}.o)
    link test_gpu "${objects[@]}" -l"$cblas" ||
        die "the tests could not be linked."
    OPENBLAS_NUM_THREADS=1 timeout "$(left 300)" "$build/test_gpu" >"$out/tests.txt" 2>&1
    case $? in
    0) outcome="passed" ;;
    77) outcome="skipped, no GPU" ;;
    *) outcome="FAILED, see $out/tests.txt" ;;
    esac
    tail -n 3 "$out/tests.txt"
else
    outcome="left out"
fi

timeout "$(left 5)" "$build/bench_gpu" "$out" 2>&1 | tee "$out/bench.txt"
code=${PIPESTATUS[0]}
printf '%-58s%s\n' "tests on the GPU:" "$outcome" "raw numbers:" "$out"
[[ $outcome != FAILED* ]] || exit 1
exit "$code"
