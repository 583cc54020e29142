#!/usr/bin/env bash
# What is still to be measured on a GPU: one JSON line per file in the folder named (default: benchmarks/results/gpu).
#   benchmarks/gpu/run.sh [FOLDER] [INTERPRETER THAT HAS VLLM]
# Each part runs by itself: one that fails leaves its complaint in NAME.log and the others go on.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-benchmarks/results/gpu}
vllm=${2:-}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"

measure() { # NAME COMMAND...
  local name=$1
  shift
  echo "== $name: $*"
  if PYTHONPATH=src "$python" "$@" >"$out/$name.log" 2>&1; then
    tail -n 1 "$out/$name.log" >"$out/$name.json" && cat "$out/$name.json"
  else
    echo "failed; see $out/$name.log"
  fi
}

"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || { echo "no GPU that torch can use"; exit 1; }
measure memory benchmarks/memory.py
for shape in 100M 1.7B; do
  measure "served-$shape" benchmarks/served.py --shape "$shape" --dtype bfloat16 --memory 0.4 --prompts 32 --tokens 512 \
    --without-generate ${vllm:+--python "$vllm"}
done
measure learning benchmarks/gpu/learning.py --seconds 480
measure decode_step benchmarks/decode_step.py --size medium --rows 64
measure sampler benchmarks/sampler.py
