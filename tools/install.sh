#!/bin/sh
# Builds and installs the package into the virtual environment of the given Python, with what its tests need.
# Debian keeps Python.h in a package of its own; where it is not installed it is unpacked into the environment,
# which needs no root.
set -eu
python=$1
venv=$(dirname "$(dirname "$python")")

have_headers() { test -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"; }

fetch_headers() {
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    headers=$(pwd)/$venv/headers
    echo "Python.h is not installed: unpacking Debian's libpython$version-dev into $venv/headers"
    mkdir -p "$headers"
    (cd "$headers" && apt-get download "libpython$version-dev" && for deb in *.deb; do dpkg -x "$deb" .; rm "$deb"; done)
    test -f "$headers/usr/include/python$version/Python.h"
    # Debian's pyconfig.h includes the one of the architecture from beside the python folder.
    CPLUS_INCLUDE_PATH=$headers/usr/include
    export CPLUS_INCLUDE_PATH
    CMAKE_ARGS="${CMAKE_ARGS:-} -DPython_INCLUDE_DIR=$headers/usr/include/python$version"
    export CMAKE_ARGS
}

if ! have_headers; then
    fetch_headers || {
        echo "phloem needs Python.h to build its kernel: install python3-dev (apt install python3-dev)" >&2
        exit 1
    }
fi
"$python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
