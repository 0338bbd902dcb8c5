#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests copipe on this machine: installs what is missing (Debian, Ubuntu), builds and runs all tests optimized, then the
# tests of the concurrent rooms under AddressSanitizer and ThreadSanitizer, then everything with clang++.
#   tests/run.sh           all of it
#   tests/run.sh --quick   the optimized tests only
set -uo pipefail

quick=
case ${1-} in
'') ;;
--quick) quick=yes ;;
--help | -h)
    sed -n '3,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
    ;;
*)
    echo "tests/run.sh: unknown option $1 (there is --quick)" >&2
    exit 2
    ;;
esac

export CXX=g++ OPENBLAS_NUM_THREADS=1
# shellcheck source=../cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
cd "$copipe_root" || exit 2
copipe_setup examples tests bench
mkdir -p build

jobs=$(copipe_jobs)
summary=()
failed=0

# step NAME COMMAND...: its output goes to a log, of which the part that matters is shown when the command fails.
step() {
    local name=$1 begin=$SECONDS outcome=passed log=build/${1// /-}.log
    shift
    say "$name (log: $log)"
    if ! "$@" >"$log" 2>&1; then
        outcome=FAILED failed=1
        grep -vE 'Test +#[0-9]+: .* Passed |^ *Start +[0-9]+: |^\[[0-9]+/[0-9]+\] [A-Z]' "$log" | tail -n 200
    fi
    summary+=("$(printf '%-32s %-8s %5d s' "$name" "$outcome" $((SECONDS - begin)))")
    [[ $outcome == passed ]]
}

skip() {
    say "$1 skipped: $2"
    summary+=("$(printf '%-32s %-8s %s' "$1" skipped "$2")")
}

# build PRESET FOLDER [configure options]
build() {
    cmake --preset "$1" -B "build/$2" "${@:3}" && cmake --build "build/$2" -j "$jobs"
}

# release: everything, and every header alone. A little optimization is what tests need; more costs minutes.
release() {
    build release release -DCMAKE_CXX_FLAGS_RELEASE='-O1 -DNDEBUG' &&
        cmake --build build/release -j "$jobs" --target all_verify_interface_header_sets
}

# check FOLDER NAME [ctest options]: runs tests and prints ctest's closing lines.
check() {
    step "$2" ${runner:+"${runner[@]}"} \
        ctest --test-dir "build/$1" --output-on-failure --no-tests=error -j "$jobs" "${@:3}" &&
        sed -n '/tests passed,/,$p' "build/${2// /-}.log"
}

# sanitize PRESET ROOM...: builds and runs the tests of those rooms that have any.
sanitize() {
    local preset=$1 room rooms=()
    shift
    for room in "$@"; do
        if compgen -G "tests/$room/*.test.cpp" >/dev/null; then rooms+=("$room"); fi
    done
    if ((${#rooms[@]} == 0)); then
        skip "test $preset" "none of its rooms has tests"
        return
    fi
    build_rooms() {
        cmake --preset "$preset" -DCOPIPE_BUILD_BENCH=OFF -DCMAKE_CXX_FLAGS_DEBUG='-O0 -g1' &&
            cmake --build "build/$preset" -j "$jobs" --target "${rooms[@]/#/test_}"
    }
    step "build $preset" build_rooms &&
        check "$preset" "test $preset" -L "^($(IFS='|'; echo "${rooms[*]}"))\$"
}

finish() {
    printf '\n'
    printf '%s\n' "${summary[@]}" "lines of code: $(tests/lines_of_code.sh | tail -n 1)"
    printf '%s in %d s\n' "$( ((failed)) && echo 'tests/run.sh FAILED' || echo 'tests/run.sh passed')" "$SECONDS"
    exit "$failed"
}

step "build release" release && check release "test release"
[[ $quick ]] && finish

sanitize asan async device transport model pipeline train examples cuda nccl

# A kernel with much address space randomization needs it off for the ThreadSanitizer of g++ 12.
runner=()
printf 'int main() {}' | g++ -fsanitize=thread -x c++ - -o build/tsan-probe
if build/tsan-probe 2>/dev/null; then
    sanitize tsan async device transport pipeline cuda nccl
elif setarch "$(uname -m)" -R build/tsan-probe 2>/dev/null; then
    runner=(setarch "$(uname -m)" -R)
    sanitize tsan async device transport pipeline cuda nccl
    runner=()
else
    skip "test tsan" "ThreadSanitizer does not start on this kernel"
fi

clang=$(copipe_clang)
if [[ $clang ]]; then
    export CXX=$clang
    step "build $clang" build debug clang && check clang "test $clang" -LE lint
else
    skip "build clang++" "no clang++ 19 or newer here, nor among the system's packages"
fi
finish
