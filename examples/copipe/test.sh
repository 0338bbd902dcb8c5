#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the command `copipe` as a user would and checks what it prints and how it exits.
#   examples/copipe/test.sh PROGRAM
set -uo pipefail
copipe=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

# expect CODE PATTERN ARGUMENTS...: the exit code, and a pattern in what is printed. Bad input takes exactly one line.
expect() {
    local code=$1 pattern=$2 found lines
    shift 2
    "$copipe" "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    found=$?
    lines=$(wc -l <"$scratch/err")
    if [[ $found != "$code" ]] || ! cat "$scratch/out" "$scratch/err" | grep -qE -- "$pattern" ||
        { [[ $code != 0 ]] && { [[ $lines != 1 ]] || [[ -s $scratch/out ]]; }; }; then
        printf 'copipe %s\n  expected exit code %s and "%s", found %s:\n' "$*" "$code" "$pattern" "$found"
        head -n 20 "$scratch/out" "$scratch/err"
        failed=1
    fi
}
file() { printf '%b' "$2" >"$scratch/$1" && echo "$scratch/$1"; }

# Every policy's own schedule is sound, whatever the format it went through.
for policy in gpipe one_f_one_b interleaved interleaved_overlapped interleaved_zero_bubble zb_h1 zb_h2 zb_v v_half \
    v_min dualpipe dualpipe_v; do
    "$copipe" schedule --policy "$policy" --ranks 4 --micro-batches 8 >"$scratch/$policy.csv" || failed=1
    expect 0 '^sound: ' check "$scratch/$policy.csv"
    expect 0 '"makespan": [0-9]' simulate --file "$scratch/$policy.csv" --format json
    expect 0 "^<svg .*" schedule --policy "$policy" --ranks 4 --micro-batches 8 --format svg
    expect 0 '^rank 3 ' schedule --policy "$policy" --ranks 4 --micro-batches 8 --format text
done
expect 0 '^rank 9 ' schedule --policy gpipe --ranks 010 --micro-batches 08 --format text
expect 0 '^0F0,0F1,0F2,0F3,0B0,0F4' schedule --policy one_f_one_b --ranks 4 --micro-batches 8
expect 0 '"0F0"' schedule --policy interleaved --ranks 2 --micro-batches 4 --chunks 3 --format json
"$copipe" schedule --policy dualpipe --ranks 4 --micro-batches 10 | "$copipe" check - | grep -q bidirectional ||
    failed=1

# Predictions.
expect 0 '^makespan 52, longest rank 52' simulate --policy dualpipe_v --ranks 4 --micro-batches 10 --overlap 2
expect 0 '^makespan 51, longest rank 48' simulate --policy zb_v --ranks 4 --micro-batches 8
costs=$(file costs.json '{"forward": [1, 2], "latency": 0.5, "links": [{"from": 1, "to": 0, "latency": 3}]}')
expect 0 '^makespan ' simulate --policy gpipe --ranks 2 --micro-batches 2 --costs "$costs"
expect 0 '^dualpipe wins' compare --ranks 8 --micro-batches 16 --overlap 2.1
expect 0 '^dualpipe_v +45\.10 ' compare --ranks 8 --micro-batches 16 --overlap 2.1
expect 0 '^interleaved_overlapped +48\.15 ' compare --ranks 8 --micro-batches 16 --overlap 2.1
expect 0 '^interleaved +58\.50 ' compare --ranks 8 --micro-batches 16
expect 0 '^one_f_one_b +0\.00006900 ' compare --ranks 8 --micro-batches 16 \
    --forward 1e-6 --backward-input 1e-6 --weight 1e-6
expect 0 '^rank 3 .{1,73}$' schedule --policy zb_v --ranks 4 --micro-batches 64 --format text
expect 0 'Usage: copipe' --help
expect 0 'Usage: copipe check' check --help

# Unsound schedules: exit code 1 and the reason.
expect 1 'deadlock: rank 0 \(action 1\) waits' check "$(file crossed.csv '0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n')"
expect 1 'Rank 1 lacks 1I0' check "$(file short.csv '0F0,0B0\n1F0\n')"
expect 1 'lacks' simulate --file "$scratch/short.csv"
expect 1 'would swap them' check "$(file swapped.csv '0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\r
1RECV_F1,1RECV_F0,1F0,1F1,1B0,1SEND_B0,1B1,1SEND_B1\r\n')"
expect 1 'as a single placement' check "$scratch/dualpipe_v.csv" --placement single

# Bad input: exit code 2 and one line that says where.
expect 2 'bad\.csv:2:5: .1X0. is no action' check "$(file bad.csv '0F0,0B0\n1F0,1X0\n')"
expect 2 "'0F0.x1b\[2J' is no action" check "$(file escape.csv '0F0\x1b[2J\n')"
expect 2 "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\.\.\.' is no action" \
    check "$(file long.csv "$(printf 'a%.0s' {1..9999})")"
expect 2 'not 8.9$' schedule --policy gpipe --ranks 4 --micro-batches $'8\n9'
expect 2 'no schedule' check "$(file empty.csv '')"
expect 2 'cannot read' check "$scratch/missing.csv"
expect 2 'folder' check "$scratch"
expect 2 'no command' draw
expect 2 'no command --draw' --draw
expect 2 'command is missing'
expect 2 'there is no nope; choose one of' schedule --policy nope --ranks 4 --micro-batches 8
expect 2 'even number of ranks' schedule --policy dualpipe --ranks 3 --micro-batches 8
expect 2 'not 8x' schedule --policy gpipe --ranks 4 --micro-batches 8x
expect 2 'not -1' schedule --policy gpipe --ranks 4 --micro-batches 8 --forward -1
expect 2 'actions' schedule --policy gpipe --ranks 60000 --micro-batches 90000000
expect 2 'has 1 stage on each rank' schedule --policy gpipe --ranks 4 --micro-batches 8 --chunks 2
expect 2 '2:7: this is not JSON' simulate --policy gpipe --ranks 2 --micro-batches 2 \
    --costs "$(file broken.json '{"forward": 1,\n "x": }')"
expect 2 'typo\.json:1:2: there is no key "forwrd"' simulate --policy gpipe --ranks 2 --micro-batches 2 \
    --costs "$(file typo.json '{"forwrd": 1}')"
expect 2 'huge\.json:2:12: the number that ends here is too large' simulate --policy gpipe --ranks 2 --micro-batches 2 \
    --costs "$(file huge.json '{"forward":\n  [1, 1e400]}')"
expect 2 'sum\.json:2:1: "weight" must be one number or 2, not 3' simulate --policy gpipe --ranks 2 --micro-batches 2 \
    --costs "$(file sum.json '{"forward": 1,\n"weight": [1, 2, 3]}')"
expect 2 'far\.json:1:35: "to": rank 0 sends nothing to rank 2' simulate --policy gpipe --ranks 3 --micro-batches 2 \
    --costs "$(file far.json '{"links": [{"from": 0, "to": 1}, {"to": 2, "from": 0}]}')"
expect 2 'more than a number can hold' simulate --policy gpipe --ranks 2 --micro-batches 2 \
    --costs "$(file sums.json '{"forward": 1e308, "weight": 1e308}')"
expect 2 'excludes' simulate --policy gpipe --ranks 2 --micro-batches 2 --costs "$costs" --forward 2

# The commands of headers of their own.
cases=$(file cases.json '{"family": "uniform", "n": 5, "stages": 3, "weights": [7, 1, 0, 7, 7]}')
expect 0 '"objective"' partition "$cases" --format json
expect 2 'cases\.json.* lacks' partition "$(file cases.json '{"family": "uniform", "stages": 3}')"
expect 2 'file is required' experts

exit "$failed"
