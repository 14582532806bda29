#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the container image that scripts/build.sh has built.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: bash scripts/launch.sh [OPTION...] [-- COMMAND [ARGUMENT...]]

Runs a shell, or a command, in the container, and removes the container at exit; prints the docker command before it runs it.
The directories models, engines, squad and results of this repository are mounted: what is downloaded, built or measured in
the container stays when it ends.

  --tag NAME           image to run (default: demobert)
  --gpus all|N|none    GPUs that the container sees (default: all where nvidia-smi finds a GPU, else none)
  --jupyter PORT       run JupyterLab on this port of this machine; 0, the default, does not
  --dry-run            print the command only
  -h, --help           this text

Exit status: that of the command; 125 docker failed; 1 a directory cannot be made; 2 wrong usage; 3 docker is not installed.
USAGE
}

fail() { # status, sentence
  echo "launch.sh: $2" >&2
  exit "$1"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
inside=/workspace/demobert tag=demobert gpus='' port=0 run=yes arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --tag | --gpus | --jupyter)
      [ -n "${2:-}" ] || fail 2 "$1 needs a value; 'bash scripts/launch.sh -h' lists the options"
      case "$1" in
        --tag) tag=$2 ;;
        --gpus) gpus=$2 ;;
        --jupyter) port=$2 ;;
      esac
      shift
      ;;
    --dry-run) run=no ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      arguments=("$@")
      break
      ;;
    *) fail 2 "unknown option '$1'; 'bash scripts/launch.sh -h' lists the options; a command follows --" ;;
  esac
  shift
done
if [ -z "$gpus" ]; then
  gpus=none
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then gpus=all; fi
fi
[[ $gpus =~ ^(all|none|[1-9][0-9]*)$ ]] || fail 2 "--gpus $gpus is neither all, none nor a number"
[[ $port =~ ^[0-9]{1,5}$ ]] && [ "$port" -le 65535 ] || fail 2 "--jupyter $port is no port; give 1 to 65535, or 0 for none"
[ "$port" -eq 0 ] || [ ${#arguments[@]} -eq 0 ] || fail 2 "--jupyter runs JupyterLab; leave out the command behind --"

# The caches of compiled models and of kernels found fastest go where they outlast the container.
command=(docker run --rm --user "$(id -u):$(id -g)" --env HOME=/tmp --env "XDG_CACHE_HOME=$inside/engines/.cache" --shm-size 1g --ulimit memlock=-1 --ulimit stack=67108864)
if [ -t 0 ] && [ -t 1 ]; then command+=(--interactive --tty); else command+=(--interactive); fi
[ "$gpus" = none ] || command+=(--gpus "$gpus")
for directory in models engines squad results; do
  [ "$run" = no ] || mkdir -p "$root/$directory" || fail 1 "$root/$directory cannot be made; check the permissions"
  command+=(--volume "$root/$directory:$inside/$directory")
done
if [ "$port" -gt 0 ]; then
  command+=(--publish "127.0.0.1:$port:8888")
  # JupyterLab keeps its token: it prints the address to open.
  arguments=(bash -c 'command -v jupyter >/dev/null || { echo "this image has no JupyterLab; build it with: bash scripts/build.sh --jupyter" >&2; exit 3; }
exec jupyter lab --no-browser --ip=0.0.0.0 --port=8888')
fi
command+=("$tag" ${arguments[@]+"${arguments[@]}"})
echo "+$(printf ' %q' "${command[@]}")"
[ "$run" = yes ] || exit 0
command -v docker >/dev/null ||
  fail 3 "docker is not installed; see https://docs.docker.com/engine/install, or use no container: bash scripts/quickstart.sh"
exec "${command[@]}"
