#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpack what only tests run, Prometheus, nginx and libfaketime, from Debian's or Ubuntu's packages into .venv/tools.
# Nothing is installed: no service starts, and removing .venv removes them. Tests without their program are skipped.
set -eu
tools=$(cd "$(dirname "$0")/.." && pwd)/.venv/tools
packages="prometheus nginx libfaketime"
[ "$(cat "$tools/packages" 2>/dev/null)" = "$packages" ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "there is no apt-get here: tests that need Prometheus or nginx will be skipped" >&2
    exit 0
fi

sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder" # apt downloads as a user of its own
cd "$folder"
# what the lists of packages name may have been replaced meanwhile
# shellcheck disable=SC2086 # several words
apt-get download -qq $packages 2>/dev/null || {
    $sudo apt-get update -qq && apt-get download -qq $packages
} || {
    echo "no packages can be had here: tests that need Prometheus or nginx will be skipped" >&2
    exit 0
}
# Ubuntu 22.04 has the program in nginx-core
dpkg-deb --contents nginx_*.deb | grep 'usr/sbin/nginx$' >/dev/null || apt-get download -qq nginx-core
for package in *.deb; do
    dpkg-deb --extract "$package" "$tools"
done
echo "$packages" >"$tools/packages"
