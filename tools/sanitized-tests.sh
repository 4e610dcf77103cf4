#!/bin/sh
# Runs the kernel's tests against a kernel built with the address and undefined-behaviour sanitizers.
set -eu
python=$1
target=build/sanitized
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$target" \
    --config-settings=cmake.define.PHLOEM_SANITIZE=ON --config-settings=build-dir=build/sanitized-objects .
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$preload" PYTHONPATH="$target" PHLOEM_SANITIZED=1 \
    "$python" -m pytest -p no:cacheprovider tests/kernel
