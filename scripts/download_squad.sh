#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Download the SQuAD training and development files into squad/ of this repository.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: bash scripts/download_squad.sh [v1_1 | v2_0]

Downloads train-v1.1.json and dev-v1.1.json (v1_1, the default) or train-v2.0.json and dev-v2.0.json (v2_0) from the SQuAD
explorer site into squad/; of several words the last one counts. -h or --help prints this text.

Prints the files on stdout. A file that is there already is not downloaded again; a broken download goes on where it stopped.
Needs wget or curl.

Exit status: 0 done; 1 a download failed; 2 unknown word; 3 neither wget nor curl is installed.
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/scripts/fetch.sh"

version=v1.1
for word in "$@"; do
  case "$word" in
    v1_1) version=v1.1 ;;
    v2_0) version=v2.0 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail 2 "unknown word '$word'; give v1_1 or v2_0" ;;
  esac
done

looks_whole() { # file: true if it starts and ends like a JSON object, false for an error page
  [ "$(head -c 1 "$1")" = "{" ] && [ "$(tail -c 16 "$1" | tr -d '[:space:]' | tail -c 1)" = "}" ]
}

mkdir -p "$root/squad" || fail 1 "$root/squad cannot be made; check the permissions"
for file in "train-$version.json" "dev-$version.json"; do
  wanted=$root/squad/$file
  unfinished=$root/squad/.$file.part
  url=https://rajpurkar.github.io/SQuAD-explorer/dataset/$file
  if [ -s "$wanted" ]; then
    echo "download_squad.sh: $file is already there" >&2
  else
    download "$url" "$unfinished" ||
      fail 1 "$url could not be downloaded; check the connection, then run this command again"
    if ! looks_whole "$unfinished"; then
      rm -f "$unfinished"
      fail 1 "what $url sent is not a JSON file; check the connection (a log-in page?), then run this command again"
    fi
    mv "$unfinished" "$wanted"
  fi
  echo "$wanted"
done
