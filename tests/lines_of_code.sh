#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the lines of code of each room, blank lines and comment lines left out, and of the core rooms together.
# The design wants the core rooms under 3,000; the last line says whether they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../include/copipe"

limit=3000
core_rooms='async|schedule|device|transport|model|pipeline|balance'
outside_core='cuda|nccl|mpi|launch|rendezvous|tcp'

count() { cat -- "$@" /dev/null | grep -cvE '^[[:space:]]*(//.*)?$' || true; }

core=0 total=0
for room in */; do
    mapfile -t files < <(find "$room" -name '*.hpp' -o -name '*.cuh' | sort)
    ((${#files[@]})) || continue
    lines=$(count "${files[@]}")
    printf '%-14s %5d\n' "${room%/}" "$lines"
    total=$((total + lines))
    if [[ ${room%/} =~ ^($core_rooms)$ ]]; then
        mapfile -t files < <(printf '%s\n' "${files[@]}" | grep -vE "$outside_core" || true)
        core=$((core + $(count "${files[@]}")))
    fi
done
total=$((total + $(count ./*.hpp)))
over=
((core <= limit)) || over=", $((core - limit)) OVER"
printf '%-14s %5d\n%-14s %5d of at most %d%s\n' all "$total" core "$core" "$limit" "$over"
