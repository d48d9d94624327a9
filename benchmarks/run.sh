#!/usr/bin/env bash
# Measure everything that docs/performance.md shows, on a quiet machine, and write it there. Most of the time goes into
# torch.compile. A command whose result is there already is skipped: delete the file to measure again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p benchmarks/results
python -c 'from benchmarks.render import FILES; print("\n".join(FILES.values()))' | while read -r command; do
  result=${command##*--save }
  if [ ! -e "${result%% *}" ]; then
    echo "+ $command" >&2
    eval "$command" </dev/null
  fi
done
python -m benchmarks.render
