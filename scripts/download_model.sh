#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Download a fine-tuned BERT checkpoint from NGC or the Hugging Face hub into models/fine-tuned of this repository.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$root/models/fine-tuned
. "$root/scripts/fetch.sh"

usage() {
  cat <<'USAGE'
Usage: bash scripts/download_model.sh [WORD...]
       bash scripts/download_model.sh hub:OWNER/NAME[@REVISION]

Downloads a fine-tuned checkpoint into models/fine-tuned and prints its directory on stdout. A directory that is there
already is not downloaded again.

From NGC (organisation nvidia), with the NGC client (https://org.ngc.nvidia.com/setup/installers/cli). Words may come in
any order; of several words of one kind the last one counts.

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

From the Hugging Face hub, with wget or curl: config.json; vocab.txt, or tokenizer.json where there is none;
tokenizer_config.json where there is one; model.safetensors, or pytorch_model.bin where there is none. A broken download goes on where it stopped. The SHA-256 of every
file is shown; that of the weights is compared with what the hub says. HF_ENDPOINT names a mirror.

Exit status: 0 done; 1 the download failed; 2 a word is unknown or no such model exists; 3 the NGC client, or both wget and
curl, are missing.
USAGE
}

framework=tf model=large length=128 squad=2 weights=dense precision=fp16
source=ngc hub=
for word in "$@"; do
  case "$word" in
    hub:*) source=hub hub=${word#hub:} ;;
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

# ---- Hugging Face hub

hub_fetch() { # file: bring a file of the model into $unfinished, resuming; fail where the model has none
  echo "download_model.sh: $1" >&2
  download "$endpoint/$id/resolve/$revision/$1" "$unfinished/.$1.part" && mv "$unfinished/.$1.part" "$unfinished/$1"
}

announced_digest() { # file: the SHA-256 in the pointer that the hub keeps for a large file; empty where it keeps none
  download "$endpoint/$id/raw/$revision/$1" "$unfinished/.pointer" 2>/dev/null || return 0
  sed -n 's/^oid sha256:\([0-9a-f]\{64\}\)$/\1/p' "$unfinished/.pointer" | head -n 1
}

download_hub() {
  local id=${hub%@*} revision=main endpoint=${HF_ENDPOINT:-https://huggingface.co} weights=model.safetensors digest
  case "$hub" in *@*) revision=${hub##*@} ;; esac
  [[ $id =~ ^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$ && $revision =~ ^[A-Za-z0-9._-]+$ ]] ||
    fail 2 "'hub:$hub' names no model of the hub; give hub:OWNER/NAME or hub:OWNER/NAME@REVISION"
  local name=${id//\//--} missing="of $id (revision $revision) could not be downloaded"
  [ "$revision" = main ] || name=$name@$revision
  local wanted=$target/$name unfinished=$target/.hub-$name
  if [ -d "$wanted" ]; then
    echo "download_model.sh: already there" >&2
    echo "$wanted"
    return
  fi
  mkdir -p "$unfinished" || fail 1 "$unfinished cannot be made; check the permissions"
  if [ ! -s "$unfinished/config.json" ]; then
    hub_fetch config.json ||
      fail 1 "config.json $missing; check the name at $endpoint/$id (private models cannot be fetched) and the connection"
  fi
  if ! grep -q '"model_type": *"bert"' "$unfinished/config.json"; then
    digest=$(sed -n 's/.*"model_type": *"\([^"]*\)".*/\1/p' "$unfinished/config.json" | head -n 1)
    rm -rf "$unfinished"
    fail 1 "$id is a model of type '${digest:-unknown}'; builder.py reads BERT models (type 'bert'), choose one of those"
  fi
  [ -s "$unfinished/vocab.txt" ] || hub_fetch vocab.txt || [ -s "$unfinished/tokenizer.json" ] || hub_fetch tokenizer.json ||
    fail 1 "neither vocab.txt nor tokenizer.json $missing; without a WordPiece vocabulary the model cannot be used"
  [ -s "$unfinished/tokenizer_config.json" ] || hub_fetch tokenizer_config.json ||
    echo "download_model.sh: no tokenizer_config.json; casing will be read from the vocabulary" >&2
  if [ ! -s "$unfinished/$weights" ] && ! hub_fetch "$weights"; then
    # A connection that broke has left something to go on from, and a model without the file has not.
    [ ! -s "$unfinished/.$weights.part" ] || fail 1 "$weights $missing; check the connection, then run this command again"
    weights=pytorch_model.bin
    [ -s "$unfinished/$weights" ] || hub_fetch "$weights" ||
      fail 1 "neither model.safetensors nor pytorch_model.bin $missing; check the connection (models split into several files are not supported)"
  fi
  digest=$(announced_digest "$weights")
  rm -f "$unfinished"/.[!.]*
  (cd "$unfinished" && sha256sum -- *) >&2
  if [ -n "$digest" ] && [ "$(sha256sum <"$unfinished/$weights")" != "$digest  -" ]; then
    rm -f "$unfinished/$weights"
    fail 1 "$weights of $id is damaged: the hub says SHA-256 $digest; run this command again"
  fi
  mv "$unfinished" "$wanted"
  echo "download_model.sh: build it with: python builder.py --hf $wanted -s 384 -o engines/$name.engine" >&2
  echo "$wanted"
}

if [ "$source" = hub ]; then
  [ $# -eq 1 ] || fail 2 "hub:$hub stands alone; leave out the other words"
  download_hub
  exit 0
fi

# ---- NGC

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
