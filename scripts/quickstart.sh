#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to an answer: sets up .venv, builds an engine from the model in the repository, asks it a question.
# PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -gt 0 ]; then
    sed -n '3,4s/^# //p' scripts/quickstart.sh
    case $1 in -h | --help) exit 0 ;; *) echo "error: quickstart.sh takes no arguments, got $1" >&2; exit 2 ;; esac
fi

. scripts/environment.sh
install cpu

model=models/bert_minilm_l6_qa_squad11_fake_quant
passage="TensorRT is a high performance deep learning inference platform that delivers low latency and high throughput for apps \
such as recommenders, speech and image/video on NVIDIA GPUs. It includes parsers to import models, and plugins to support novel ops \
and layers before applying optimizations for inference. Today NVIDIA is open-sourcing parsers and plugins in TensorRT so that the deep \
learning community can customize and extend these components to take advantage of powerful TensorRT optimizations for your apps."

set -x
.venv/bin/python builder.py -x $model/bert_minilm_l6_qa_fake_quant.onnx -c $model -o engines/demo.engine -s 384 --backend cpu
.venv/bin/python inference.py -e engines/demo.engine -p "$passage" -q "What is TensorRT?"
