#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that only a GPU can show: compiles infer_c, runs the tests of its kernels and engines, answers SQuAD with the
# repository's model in every precision, and looks for bad memory accesses and races. CI has no GPU, so run this before
# changing a kernel.
#
#   scripts/test_gpu.sh [SQUAD_FILE]      by default the sample of 1,000 questions
#
# All of dev-v1.1.json holds F1 against limits; other files only have it printed. Measures no times; scripts/benchmark_peers.py
# does. PYTHON names another interpreter than python3, SANITIZER_TESTS (as pytest's -k) other tests for compute-sanitizer than
# the small shapes of all kernels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in -h | --help) sed -n '3,11s/^# \{0,1\}//p' scripts/test_gpu.sh; exit 0 ;; esac
python=${PYTHON:-python3}
squad=${1:-squad/dev-sample-1000.json}
model=models/bert_minilm_l6_qa_squad11_fake_quant
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake -S . -B build -DBERT_CUDA_ARCHITECTURES="${ARCHITECTURES:-90a}" -DBERT_TEST_OPS=ON "-DPython3_EXECUTABLE=$(command -v "$python")" > "$work/cmake.log" ||
  { cat "$work/cmake.log"; exit 1; }
cmake --build build -j > "$work/build.log" 2>&1 || { tail -40 "$work/build.log"; exit 1; }

echo "== kernels and engines against NumPy"
# Where pytest-xdist is installed, all at once; the test of the GPU's memory must be alone on it.
processes=()
"$python" -c "import xdist" 2> /dev/null && processes=(-n "${TEST_PROCESSES:-8}")
timeout -s KILL "${TEST_SECONDS:-600}" "$python" -m pytest -q -p no:benchmark "${processes[@]}" tests/test_cuda_*.py -k "not memory_is_flat"
timeout -s KILL "${TEST_SECONDS:-600}" "$python" -m pytest -q tests/test_cuda_model.py -k memory_is_flat

echo "== SQuAD with the repository's model"
whole=$([ "$(grep -o '"question":' "$squad" | wc -l)" -eq 10570 ] && echo yes || true)
for precision in fp32 fp16 int8 fp8; do
  limit=78.2
  case $precision in fp32 | fp16) limit=78.68 ;; esac # FP32 on a CPU: 78.78
  "$python" builder_varseqlen.py --backend cuda -x "$model"/*.onnx -c "$model" -v "$model/vocab.txt" -o "$work/$precision.engine" -b 64 -s 384 \
    "--$precision" 2> "$work/build.log" || { cat "$work/build.log"; exit 1; }
  "$python" inference_varseqlen.py -e "$work/$precision.engine" -sq "$squad" -v "$model/vocab.txt" -s 384 -o "$work/$precision.json" 2>&1 | tail -1
  echo "$precision:"
  if [ "$whole" ]; then
    "$python" squad/evaluate-v1.1.py "$squad" "$work/$precision.json" "$limit" --tolerance 0 --strict-status
  else
    "$python" squad/evaluate-v1.1.py "$squad" "$work/$precision.json" "$limit" 2> /dev/null | tail -1
  fi
done

if command -v compute-sanitizer > /dev/null; then
  check() {
    echo "== compute-sanitizer $*"
    timeout -s KILL "${SANITIZER_SECONDS:-600}" compute-sanitizer --tool "$1" --error-exitcode 9 "$python" -m pytest -q -x \
      -p tests.cuda_engine.small "${@:2}" -k "${SANITIZER_TESTS:-not gelu_erf}" | tail -4
  }
  check memcheck tests/test_cuda_kernels.py tests/test_cuda_products.py
  check racecheck tests/test_cuda_kernels.py tests/test_cuda_products.py
fi
