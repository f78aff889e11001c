#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install the Debian or Ubuntu packages that the project needs and that are missing. If none is, do nothing.
set -eu
python=${PYTHON:-python3}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
    3.11 | 3.12) ;;
    *)
        echo "Error: $python is Python $version, and the embedded Triton server's Python backend needs numpy 1:" \
            "install Python 3.11 or 3.12 and call make with PYTHON=python3.12" >&2
        exit 1
        ;;
esac

missing=""
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python$version-venv"
# Triton's Python backend embeds Python
"$python" - 2>/dev/null <<'PYTHON' || missing="$missing libpython$version"
import ctypes, os, sysconfig
name = "libpython%s.so.1.0" % sysconfig.get_config_var("py_version_short")
path = os.path.join(sysconfig.get_config_var("LIBDIR"), name)
ctypes.CDLL(path if os.path.exists(path) else name)
PYTHON
command -v curl >/dev/null || missing="$missing curl"
[ -e /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf ] || missing="$missing fonts-noto-color-emoji"
[ -n "$missing" ] || exit 0

echo "installing Debian packages:$missing"
if [ "$(id -u)" = 0 ]; then
    sudo=""
elif command -v sudo >/dev/null; then
    sudo=sudo
else
    echo "Error: please have an administrator run: apt-get install$missing" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# shellcheck disable=SC2086  # a list of words
$sudo apt-get install -qq -y --no-install-recommends $missing >/dev/null
