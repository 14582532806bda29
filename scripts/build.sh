#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Build the container image from the Dockerfile; scripts/launch.sh runs it.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: bash scripts/build.sh [OPTION...]

Builds the container image, and prints the docker command before it runs it. The user in the image has the caller's ids.

  --target cpu|gpu     the slim image, or the one on NVIDIA's TensorRT container (default: gpu where nvidia-smi finds a GPU)
  --tag NAME           name of the image (default: demobert)
  --tensorrt YY.MM     version of NVIDIA's TensorRT container (default: that of the Dockerfile)
  --with PACKAGE       with a Python package more, such as tensorflow-cpu to read checkpoints in the cpu image; repeatable
  --jupyter            with JupyterLab and matplotlib, for inference.ipynb and launch.sh --jupyter
  --file FILE          another Dockerfile
  --dry-run            print the command only
  -h, --help           this text

Exit status: docker's; 2 wrong usage; 3 docker is not installed.
USAGE
}

fail() { # status, sentence
  echo "build.sh: $2" >&2
  exit "$1"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target='' tag=demobert tensorrt='' file=$root/Dockerfile packages='' run=yes
while [ $# -gt 0 ]; do
  case "$1" in
    --target | --tag | --tensorrt | --file | --with)
      [ -n "${2:-}" ] || fail 2 "$1 needs a value; 'bash scripts/build.sh -h' lists the options"
      case "$1" in
        --target) target=$2 ;;
        --tag) tag=$2 ;;
        --tensorrt) tensorrt=$2 ;;
        --file) file=$2 ;;
        --with) packages+=" $2" ;;
      esac
      shift
      ;;
    --jupyter) packages+=" jupyterlab matplotlib" ;;
    --dry-run) run=no ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail 2 "unknown option '$1'; 'bash scripts/build.sh -h' lists the options" ;;
  esac
  shift
done
if [ -z "$target" ]; then
  target=cpu
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then target=gpu; fi
fi
case "$target" in cpu | gpu) ;; *) fail 2 "there is no target '$target'; give cpu or gpu" ;; esac

user=$(id -u) group=$(id -g)
if [ "$user" -eq 0 ]; then user=1000 group=1000; fi # the image's user is never root
command=(docker build --file "$file" --target "$target" --tag "$tag" --build-arg "UID=$user" --build-arg "GID=$group")
[ -z "$tensorrt" ] || command+=(--build-arg "TENSORRT=$tensorrt")
[ -z "$packages" ] || command+=(--build-arg "PACKAGES=${packages# }")
command+=("$root")
echo "+$(printf ' %q' "${command[@]}")"
[ "$run" = yes ] || exit 0
command -v docker >/dev/null ||
  fail 3 "docker is not installed; see https://docs.docker.com/engine/install, or use no container: bash scripts/quickstart.sh"
exec "${command[@]}"
