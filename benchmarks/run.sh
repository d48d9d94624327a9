#!/usr/bin/env bash
# Measure the ops and a training step on a quiet machine, and write the tables of benchmarks/results. Most of the time goes
# into torch.compile. A command whose result is in out/bench is skipped: delete the file to measure again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p out/bench
python -c 'from benchmarks.timings import COMMANDS; [print(*item) for item in COMMANDS.items()]' | while read -r name command; do
  if [ ! -e "out/bench/$name.json" ]; then
    echo "+ python -m benchmarks.$command" >&2
    # shellcheck disable=SC2086
    python -m benchmarks.$command --save "out/bench/$name.json" </dev/null
  fi
done
python -m benchmarks.timings out/bench
python -m benchmarks.numbers
