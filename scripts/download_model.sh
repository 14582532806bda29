#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Download a fine-tuned BERT checkpoint from NGC into models/fine-tuned of this repository.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: bash scripts/download_model.sh [WORD...]

Downloads a fine-tuned checkpoint from NGC (organisation nvidia) into models/fine-tuned. Words may come in any order; of
several words of one kind the last one counts.

  kind              words                        default
  framework         tf, pyt                      tf
  model             base, large, megatron-large  large
  sequence length   128, 384                     128
  SQuAD version     v1_1, v2                     v2
  sparse weights    sparse                       dense
  precision         int8-qat                     fp16
  help              -h, --help

  choice                                NGC model                                                 version
  tf, base or large                     bert_tf_ckpt_{base,large}_qa_squad{2,11}_amp_{128,384}    19.03.1
  pyt large v1_1 (any length)           bert_pyt_onnx_large_qa_squad11_amp_fake_quant             1
  pyt megatron-large (any length,       bert_pyt_statedict_megatron_{dense,sparse}_{fp16,int8qat} 21.03.0
    any SQuAD version)

Prints the directory on stdout. A directory that is there already is not downloaded again.
Needs the NGC command-line client: https://org.ngc.nvidia.com/setup/installers/cli

Exit status: 0 done; 1 the download failed; 2 a word is unknown or no such model exists; 3 the NGC client is missing.
USAGE
}

fail() { # status, sentence
  echo "download_model.sh: $2" >&2
  exit "$1"
}

framework=tf model=large length=128 squad=2 weights=dense precision=fp16
for word in "$@"; do
  case "$word" in
    tf | pyt) framework=$word ;;
    base | large | megatron-large) model=$word ;;
    128 | 384) length=$word ;;
    v2) squad=2 ;;
    v1_1) squad=11 ;;
    sparse) weights=sparse ;;
    int8-qat) precision=int8qat ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail 2 "unknown word '$word'; 'bash scripts/download_model.sh -h' lists the words" ;;
  esac
done

if [ "$model" != megatron-large ] && [ "$weights$precision" != densefp16 ]; then
  fail 2 "the words sparse and int8-qat choose a Megatron checkpoint only; add the words pyt megatron-large"
fi
case "$framework-$model-$squad" in
  tf-base-* | tf-large-*) name=bert_tf_ckpt_${model}_qa_squad${squad}_amp_${length} version=19.03.1 ;;
  pyt-large-11) name=bert_pyt_onnx_large_qa_squad11_amp_fake_quant version=1 ;;
  pyt-megatron-large-*) name=bert_pyt_statedict_megatron_${weights}_${precision} version=21.03.0 ;;
  tf-megatron-large-*) fail 2 "the Megatron checkpoints exist for PyTorch only; add the word pyt" ;;
  *) fail 2 "of the PyTorch checkpoints only BERT large for SQuAD v1.1 exists; give the words pyt large v1_1" ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$root/models/fine-tuned
wanted=$target/${name}_v$version
if [ -d "$wanted" ]; then
  echo "download_model.sh: already there" >&2
  echo "$wanted"
  exit 0
fi
command -v ngc >/dev/null ||
  fail 3 "the NGC client 'ngc' is not installed; get it at https://org.ngc.nvidia.com/setup/installers/cli and put it on PATH"

# The client writes file by file: let it do so beside the target, and give the whole directory its name at the end.
mkdir -p "$target" || fail 1 "$target cannot be made; check the permissions"
find "$target" -maxdepth 1 -name '.unfinished-*' -mtime +1 -exec rm -rf {} + # left by killed runs
unfinished=$(mktemp -d "$target/.unfinished-XXXXXX") || fail 1 "$target cannot be written; check the permissions"
trap 'rm -rf "$unfinished"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

ngc registry model download-version "nvidia/$name:$version" --dest "$unfinished" >&2 ||
  fail 1 "the NGC client could not download nvidia/$name:$version; see its message above, then run this command again"
# The client has ended with status 0 without a complete download before: look at what arrived.
[ -n "$(find "$unfinished/${name}_v$version" -type f -size +0c 2>/dev/null | head -n 1)" ] ||
  fail 1 "the NGC client brought no files of nvidia/$name:$version; see its message above, then run this command again"
[ -d "$wanted" ] || mv "$unfinished/${name}_v$version" "$wanted" # another run may have been faster
echo "$wanted"
