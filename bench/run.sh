#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and runs every benchmark and prints one table each: the programs of bench/, compile times, lines of code.
#   bench/run.sh [options of Google Benchmark, such as --benchmark_filter=engine; then without bench/balance]
set -euo pipefail
# shellcheck source=../cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
cd "$copipe_root"
copipe_setup bench

build=build/bench
mkdir -p "$build"
say "building the benchmarks (log: $build/build.log)"
if ! { cmake --preset release -B "$build" -DCOPIPE_BUILD_TESTS=OFF -DCOPIPE_BUILD_EXAMPLES=OFF &&
    cmake --build "$build" -j "$(copipe_jobs)"; } >"$build/build.log" 2>&1; then
    tail -n 40 "$build/build.log" >&2
    die "the benchmarks could not be built."
fi

printf '%s, %d cores, %s, %s\n' "$(date +%F)" "$(nproc)" \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$("$CXX" --version | head -n 1)"
for program in "$build"/bench/bench_*; do
    [[ -x $program ]] || continue
    printf '\n%s\n' "${program##*/bench_}"
    OPENBLAS_NUM_THREADS=1 "$program" --benchmark_counters_tabular=true "$@"
done
if (($# == 0)); then
    printf '\npipelines that fall out of balance, in virtual time, over an oracle (some 40 minutes of one core)\n'
    "$build"/bench/balance
fi
printf '\ncompile time of a file that includes one header (processor time, g++ -O2, median of 5)\n'
bench/compile_time.sh || true
printf '\nlines of code\n'
tests/lines_of_code.sh
