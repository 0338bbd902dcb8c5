#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains the example GPT: installs what is missing (Debian, Ubuntu), builds train_gpt and runs it with your options.
#   examples/train.sh [options of train_gpt; --help lists them]
set -euo pipefail
# shellcheck source=../cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

copipe_train_gpt
exec "$TRAIN_GPT" "$@"
