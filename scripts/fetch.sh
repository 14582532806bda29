# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by the download scripts: how they fail, and how they fetch a file so that a broken download can go on.

fail() { # status, sentence
  echo "$(basename "$0"): $2" >&2
  exit "$1"
}

fetch() { # URL, file: fetch what the file still lacks
  if command -v wget >/dev/null; then
    wget -c -O "$2" "$1" >&2
  elif command -v curl >/dev/null; then
    curl --fail --location --continue-at - --output "$2" "$1" >&2
  else
    fail 3 "neither wget nor curl is installed; install one, for example with: sudo apt-get install wget"
  fi
}

download() { # URL, file: fetch, and begin again once if the server will not go on from what an earlier run left
  local had_some=no status=0
  [ ! -s "$2" ] || had_some=yes
  fetch "$1" "$2" || status=$?
  case "$had_some-$status" in
    yes-1 | yes-8 | yes-22 | yes-33) # wget: general and server errors; curl: HTTP and range errors
      rm -f "$2"
      status=0
      fetch "$1" "$2" || status=$?
      ;;
  esac
  [ -s "$2" ] || rm -f "$2"
  return "$status"
}
