#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two ranks of train_gpt, one of which really computes two times slower: the time of a step after `balanced` has moved
# layers, against every partition held from the start; against the best of them in turns. And what measuring costs: of
# two steps in a row only the second times each layer and probes the devices.
#   bench/balance_gpt.sh [ROUNDS]   3 rounds when none are named
set -euo pipefail
export LC_ALL=C
# shellcheck source=../cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
cd "$copipe_root"
rounds=${1:-3}
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "bench/balance_gpt.sh takes a number of rounds"

unset OPENBLAS_CORETYPE
export OPENBLAS_NUM_THREADS=1

copipe_train_gpt # unless TRAIN_GPT names another build
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

median() { sort -n | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }
seconds() { sed 's/.*"step_seconds":\([^,]*\),.*/\1/'; }

# train STEPS OPTIONS...: a run whose log is $scratch/log
train() {
    rm -f "$scratch/log"
    "$TRAIN_GPT" --policy one_f_one_b --ranks 2 --micro-batches 8 --layers 8 --width 64 --context 64 \
        --data include --device cpu --eval-every 0 --sample 0 --log "$scratch/log" --steps "$@" \
        >"$scratch/out" 2>"$scratch/err" || die "train_gpt failed: $(cat "$scratch/err")"
}

blocks() { printf 't%.0s' $(seq 1 "$1"); }
layouts=("E|$(blocks 8)L")
for ((first = 1; first < 8; ++first)); do layouts+=("E$(blocks "$first")|$(blocks $((8 - first)))L"); done
layouts+=("E$(blocks 8)|L")

# hold STEPS LAYOUT: the median step in seconds, but for the first four, with layers held so from the start.
hold() {
    train "$1" --layout "$2" --slow 1=2@1
    tail -n +5 "$scratch/log" | seconds | median
}

best="" least=""
for layout in "${layouts[@]}"; do
    for ((round = 1; round <= rounds; ++round)); do hold 14 "$layout"; done >"$scratch/held"
    each=$(median <"$scratch/held")
    printf '%-12s %8.2f ms\n' "$layout" "$(awk "BEGIN { print 1e3 * $each }")"
    if [[ ! $best ]] || awk "BEGIN { exit !($each < $least) }"; then best=$layout least=$each; fi
done

# What this machine does at one time says little of another: the best partition once more before each run that moves.
for ((round = 1; round <= rounds; ++round)); do
    held=$(hold 44 "$best")
    train 80 --balance balanced --fingerprints none --slow 1=2@21
    after=$(tail -n 40 "$scratch/log" | seconds | median)
    printf '%-12s %8.2f ms, then balanced %8.2f ms, %.3f of it; bounds moved to: %s\n' "$best" \
        "$(awk "BEGIN { print 1e3 * $held }")" "$(awk "BEGIN { print 1e3 * $after }")" \
        "$(awk "BEGIN { print $after / $held }" | tee -a "$scratch/ratios")" \
        "$(sed -n 's/.*"moved_to":\[\([^]]*\)\].*/\1/p' "$scratch/log" | paste -sd' ')"
done
printf 'balanced: %.3f of the best partition held from the start, median of %d\n' \
    "$(median <"$scratch/ratios")" "$rounds"

for ((round = 1; round <= rounds; ++round)); do
    train 140 --balance balanced --fingerprints none --balance-every 20
    tail -n +21 "$scratch/log" | seconds | awk 'NR % 2 == 1' | median >>"$scratch/plain"
    tail -n +21 "$scratch/log" | seconds | awk 'NR % 2 == 0' | median >>"$scratch/measured"
done
plain=$(median <"$scratch/plain") measured=$(median <"$scratch/measured")
printf 'measuring: %.2f ms a step with, %.2f ms without: %+.2f %% on steps that are measured\n' \
    "$(awk "BEGIN { print 1e3 * $measured }")" "$(awk "BEGIN { print 1e3 * $plain }")" \
    "$(awk "BEGIN { print 100 * ($measured / $plain - 1) }")"
