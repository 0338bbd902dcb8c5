#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains the example GPT: installs what is missing (Debian, Ubuntu), builds train_gpt and runs it with your options.
#   examples/train.sh [options of train_gpt; --help lists them]
set -euo pipefail
# shellcheck source=../cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

build=$copipe_root/build/train
copipe_setup examples
mkdir -p "$build"
say "building train_gpt (the first time takes a few minutes; log: $build/build.log)"
if ! (cd "$copipe_root" &&
    cmake --preset release -B "$build" -DCOPIPE_BUILD_TESTS=OFF -DCOPIPE_BUILD_BENCH=OFF &&
    cmake --build "$build" --target train_gpt -j "$(copipe_jobs)") >"$build/build.log" 2>&1; then
    tail -n 40 "$build/build.log" >&2
    die "train_gpt could not be built."
fi
exec "$build/examples/gpt/train_gpt" "$@"
