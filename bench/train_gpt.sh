#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How much faster two ranks train than one: train_gpt under every policy on two cores against `sequential` on one of
# them, in rounds one after the other, so that what else the machine does falls on all of them alike. The row "two
# apart" is what two cores of this machine can give at most: two sequential runs at once that know nothing of each
# other.
#   bench/train_gpt.sh [ROUNDS [STEPS]]   5 rounds of 12 steps when none are named; the first 2 steps do not count
set -euo pipefail
export LC_ALL=C
# shellcheck source=../cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
cd "$copipe_root"
rounds=${1:-5} steps=${2:-12}
number="^[1-9][0-9]*$"
if ! [[ $rounds =~ $number && $steps =~ $number ]] || ((steps <= 2)); then
    die "bench/train_gpt.sh takes two numbers"
fi

# The BLAS decides by itself what the processor can do, as on a user's machine; each rank computes on one thread.
unset OPENBLAS_CORETYPE
export OPENBLAS_NUM_THREADS=1

copipe_train_gpt # unless TRAIN_GPT names another build

mapfile -t cores < <(taskset -cp $$ | sed 's/.*: //' | tr , '\n' |
    awk -F- '{ for (c = $1; c <= (NF > 1 ? $2 : $1); ++c) print c }')
((${#cores[@]} >= 2)) || die "this benchmark needs two cores; this process may use ${#cores[@]}."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

median() { sort -n | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }

# once POLICY RANKS CORES: a run on these cores; prints the median of its steps in seconds, the predicted and the
# measured bubble in percent.
once() {
    local own=$scratch/on.$3
    taskset -c "$3" "$TRAIN_GPT" --policy "$1" --ranks "$2" --steps "$steps" --data include --eval-every 0 \
        --sample 0 --log "$own.log" >"$own.out" 2>"$own.err" ||
        die "train_gpt failed: $(cat "$own.err")"
    tail -n +3 "$own.log" >"$own.steps"
    printf '%s %s %s\n' \
        "$(sed 's/.*"step_seconds":\([^,]*\),.*/\1/' "$own.steps" | median)" \
        "$(sed -n 's/^plan .* bubble \([0-9.]*\) %$/\1/p' "$own.out")" \
        "$(sed 's/.*"pipeline_bubble_ratio":\[\([^]]*\)\].*/\1/' "$own.steps" |
            awk -F, '{ s = 0; for (i = 1; i <= NF; ++i) s += $i; print 100 * s / NF }' | median)"
}

policies=(gpipe one_f_one_b dualpipe dualpipe_v)
for ((round = 1; round <= rounds; ++round)); do
    say "round $round of $rounds"
    once sequential 1 "${cores[0]}" >>"$scratch/sequential"
    reference=$(tail -n 1 "$scratch/sequential" | cut -d' ' -f1)
    once sequential 1 "${cores[0]}" >"$scratch/first" &
    once sequential 1 "${cores[1]}" >"$scratch/second"
    wait
    paste -d' ' "$scratch/first" "$scratch/second" |
        awk -v reference="$reference" '{ print $1 * $4 / ($1 + $4), 0, 0, reference / $1 + reference / $4 }' \
            >>"$scratch/apart"
    say "sequential: $reference s a step; two apart: speed-up $(tail -n 1 "$scratch/apart" | cut -d' ' -f4)"
    for policy in "${policies[@]}"; do
        once "$policy" 2 "${cores[0]},${cores[1]}" >"$scratch/now"
        awk -v reference="$reference" '{ print $0, reference / $1 }' "$scratch/now" >>"$scratch/$policy"
        say "$policy: $(tail -n 1 "$scratch/$policy" | awk '{ printf "%.3f s a step, speed-up %.3f", $1, $4 }')"
    done
done

column() { cut -d' ' -f"$2" "$scratch/$1" | median; }
printf '%-12s %5s %12s %9s %22s %17s %16s\n' \
    policy cores 'step (s)' speed-up 'lowest to highest' predicted\ bubble measured\ bubble
printf '%-12s %5d %12.4f %9s %22s %16.1f%% %15.1f%%\n' \
    sequential 1 "$(column sequential 1)" - - "$(column sequential 2)" "$(column sequential 3)"
spread() { cut -d' ' -f4 "$scratch/$1" | sort -n | sed -n '1p;$p' | xargs printf '%.3f to %.3f'; }
printf '%-12s %5d %12.4f %9.3f %22s %17s %16s\n' \
    'two apart' 2 "$(column apart 1)" "$(column apart 4)" "$(spread apart)" - -
for policy in "${policies[@]}"; do
    printf '%-12s %5d %12.4f %9.3f %22s %16.1f%% %15.1f%%\n' \
        "$policy" 2 "$(column "$policy" 1)" "$(column "$policy" 4)" \
        "$(spread "$policy")" \
        "$(column "$policy" 2)" "$(column "$policy" 3)"
done
