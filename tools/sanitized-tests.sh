#!/bin/sh
# Runs the kernel's tests against a kernel built with the address and undefined-behaviour sanitizers.
set -eu
python=$1
target=$(pwd)/build/sanitized
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$target" \
    --config-settings=cmake.define.PHLOEM_SANITIZE=ON --config-settings=install.strip=false \
    --config-settings=build-dir=build/sanitized-objects .
# The editable install would be found first: it is told to look away, and what is loaded is looked at.
skip=$("$python" -c 'import sys; print(next((f.path for f in sys.meta_path if "ScikitBuild" in type(f).__name__ and f.path), ""))')
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
export SKBUILD_EDITABLE_SKIP="$skip" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$preload" PYTHONPATH="$target"
"$python" -c 'import sys, phloem.kernel._kernel as k; sys.exit(not k.__file__.startswith(sys.argv[1]) and "not the sanitized kernel: " + k.__file__)' "$target"
"$python" -m pytest -p no:cacheprovider --timeout=300 tests/kernel tests/transport tests/conformance
