#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints how long a file that includes nothing but one header takes to compile: seconds of processor time (so that other
# work on the machine counts little), g++ -O2, median of five.
#   bench/compile_time.sh [HEADER...]   copipe/copipe.hpp, say; every header when none is named
# Fails when a header with a budget exceeds it.
set -euo pipefail
export LC_ALL=C
include=$(cd "$(dirname "${BASH_SOURCE[0]}")/../include" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The budget of a header in seconds, where there is one.
budget() {
    case $1 in
    copipe/schedule/*) echo 0.5 ;;
    copipe/copipe.hpp) echo 3 ;;
    esac
}

seconds() {
    local TIMEFORMAT='%U %S'
    { time "${CXX:-g++}" -std=c++20 -O2 ${Boost_ROOT:+-isystem "$Boost_ROOT/include"} -I"$include" \
        -c "$scratch/file.cpp" -o "$scratch/file.o"; } 2>&1 | awk '{ print $1 + $2 }'
}

headers=("$@")
if ((${#headers[@]} == 0)); then
    mapfile -t headers < <(cd "$include" && find copipe -name '*.hpp' | sort)
fi

over=0
for header in "${headers[@]}"; do
    printf '#include <%s>\n' "$header" >"$scratch/file.cpp"
    median=$(for _ in 1 2 3 4 5; do seconds; done | sort -n | sed -n 3p)
    limit=$(budget "$header")
    note=
    if [[ $limit ]]; then
        note="of $limit"
        if awk "BEGIN { exit !($median > $limit) }"; then note="$note, OVER" over=1; fi
    fi
    printf '%8.2f s  %-44s %s\n' "$median" "$header" "$note"
done
exit "$over"
