#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests copipe: installs what is missing (Debian, Ubuntu); builds and runs all tests with g++, optimized;
# then, with clang++ 19 or newer, everything under AddressSanitizer and UndefinedBehaviorSanitizer, and the rooms of
# threads under ThreadSanitizer. Where there is no clang++, g++ does that, too.
#   tests/run.sh           all of it
#   tests/run.sh --quick   the optimized tests only
set -uo pipefail

quick=
case ${1-} in
'') ;;
--quick) quick=yes ;;
--help | -h)
    sed -n '3,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
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

# build PRESET TARGET... A little optimization is what tests need: more costs minutes. Sanitized by clang++ they do
# without; g++'s sanitizers need it for symmetric transfer.
flags=(-DCMAKE_CXX_FLAGS_RELEASE='-O1 -DNDEBUG')
build() {
    cmake --preset "$1" "${flags[@]}" &&
        cmake --build "build/$1" -j "$jobs" --target "${@:2}"
}

# check FOLDER NAME [ctest options]: runs tests and prints ctest's closing lines.
check() {
    step "$2" ${runner:+"${runner[@]}"} \
        ctest --test-dir "build/$1" --output-on-failure --no-tests=error -j "$jobs" "${@:3}" &&
        sed -n '/tests passed,/,$p' "build/${2// /-}.log"
}

finish() {
    printf '\n'
    printf '%s\n' "${summary[@]}" "lines of code: $(tests/lines_of_code.sh | tail -n 1)"
    printf '%s in %d s\n' "$( ((failed)) && echo 'tests/run.sh FAILED' || echo 'tests/run.sh passed')" "$SECONDS"
    exit "$failed"
}

step "build release" build release all all_verify_interface_header_sets && check release "test release"
[[ $quick ]] && finish

clang=$(copipe_clang)
if [[ $clang ]]; then
    export CXX=$clang
    flags=(-DCMAKE_CXX_FLAGS_DEBUG='-O0 -g1')
else
    skip "build clang++" "no clang++ 19 or newer with sanitizers here, nor among the system's packages"
fi
step "build asan" build asan all && check asan "test asan" -LE 'lint|package|tables|bench'

concurrent=(async device transport pipeline cuda nccl)
# A kernel with much address space randomization needs it off for ThreadSanitizer.
runner=()
printf 'int main() {}' | "$CXX" -fsanitize=thread -x c++ - -o build/tsan-probe
if ! build/tsan-probe 2>/dev/null && setarch "$(uname -m)" -R build/tsan-probe 2>/dev/null; then
    runner=(setarch "$(uname -m)" -R)
fi
if "${runner[@]}" build/tsan-probe 2>/dev/null; then
    step "build tsan" build tsan "${concurrent[@]/#/test_}" &&
        check tsan "test tsan" -L "^($(IFS='|'; echo "${concurrent[*]}"))\$"
else
    skip "test tsan" "ThreadSanitizer does not start on this kernel"
fi
finish
