#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every shell script parses, and shellcheck, where it is installed, has nothing to say about it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mapfile -t scripts < <(find .ci bench cmake examples tests -name '*.sh' -o -path .ci/run | sort)
for script in "${scripts[@]}"; do
    bash -n "$script"
done
if command -v shellcheck >/dev/null; then
    shellcheck --severity=warning --external-sources --source-path=SCRIPTDIR "${scripts[@]}"
fi
printf '%d scripts checked\n' "${#scripts[@]}"
