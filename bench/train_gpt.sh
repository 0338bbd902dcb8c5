#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How much faster two ranks train than one: train_gpt under every policy on two cores against `sequential`, which
# computes on one of them. All take turns, a step each, so that what else the machine does falls on all of them alike; a
# speed-up is the median of those within a turn. The row "2 apart" is what two cores of this machine can give at most:
# two sequential runs at once that know nothing of each other.
#   bench/train_gpt.sh [STEPS [options of train_gpt]]   31 steps when no number is named; the first does not count
set -euo pipefail
export LC_ALL=C
# shellcheck source=../cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"
cd "$copipe_root"
steps=${1:-31}
if ! [[ $steps =~ ^[1-9][0-9]*$ ]]; then die "bench/train_gpt.sh takes a number of steps first, not $steps"; fi

# The BLAS decides by itself what the processor can do, as on a user's machine; each rank computes on one thread.
unset OPENBLAS_CORETYPE
export OPENBLAS_NUM_THREADS=1

copipe_train_gpt # unless TRAIN_GPT names another build

mapfile -t cores < <(taskset -cp $$ | sed 's/.*: //' | tr , '\n' |
    awk -F- '{ for (c = $1; c <= (NF > 1 ? $2 : $1); ++c) print c }')
((${#cores[@]} >= 2)) || die "this benchmark needs two cores; this process may use ${#cores[@]}."
taskset -c "${cores[0]},${cores[1]}" "$TRAIN_GPT" --compare --ranks 2 --steps "$steps" --data include "${@:2}"
