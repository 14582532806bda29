#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that only a GPU can show: compiles infer_c, runs the tests of its kernels and engines, answers SQuAD with the
# repository's model, and looks for bad memory accesses and races. CI has no GPU, so run this before changing a kernel.
#
#   scripts/test_gpu.sh [SQUAD_FILE]      by default the sample of 1,000 questions
#
# Measures nothing; scripts/benchmark_peers.py does. PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
squad=${1:-squad/dev-sample-1000.json}
model=models/bert_minilm_l6_qa_squad11_fake_quant
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake -S . -B build -DBERT_CUDA_ARCHITECTURES="${ARCHITECTURES:-90a}" -DBERT_TEST_OPS=ON "-DPython3_EXECUTABLE=$(command -v "$python")" > "$work/cmake.log" ||
  { cat "$work/cmake.log"; exit 1; }
cmake --build build -j > "$work/build.log" 2>&1 || { tail -40 "$work/build.log"; exit 1; }

echo "== kernels and engines against NumPy"
timeout -s KILL "${TEST_SECONDS:-300}" "$python" -m pytest -q tests/test_cuda_kernels.py tests/test_cuda_model.py

echo "== SQuAD with the repository's model: F1 of FP16 within 0.1 of FP32"
for precision in fp32 fp16; do
  flag=$([ "$precision" = fp16 ] && echo --fp16 || true)
  # shellcheck disable=SC2086  # the flag may be absent
  "$python" builder_varseqlen.py --backend cuda -x "$model"/*.onnx -c "$model" -v "$model/vocab.txt" -o "$work/$precision.engine" -b 64 -s 384 $flag 2> "$work/build.log" ||
    { cat "$work/build.log"; exit 1; }
  "$python" inference_varseqlen.py -e "$work/$precision.engine" -sq "$squad" -v "$model/vocab.txt" -s 384 -o "$work/$precision.json" 2>&1 | tail -1
  "$python" squad/evaluate-v1.1.py "$squad" "$work/$precision.json" 70 | tail -2
done

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    echo "== compute-sanitizer $tool"
    timeout -s KILL "${SANITIZER_SECONDS:-300}" compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -x \
      tests/test_cuda_kernels.py -k "${SANITIZER_TESTS:-large_scores or embedding or add_layernorm}" | tail -4
  done
fi
