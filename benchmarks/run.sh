#!/usr/bin/env bash
# Measure everything that docs/performance.md shows, on a quiet machine, and write it there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p benchmarks/results
python - <<'PY' | while read -r command; do echo "+ $command" >&2; eval "$command"; done
from benchmarks.render import FILES
print("\n".join(FILES.values()))
PY
python -m benchmarks.render
