#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpack Prometheus and nginx, which only tests run, from Debian's or Ubuntu's packages into .venv/tools. Nothing is
# installed: no service starts, and removing .venv removes them. A test whose program is missing is skipped.
set -eu
tools=$(cd "$(dirname "$0")/.." && pwd)/.venv/tools
[ -x "$tools/usr/bin/promtool" ] && [ -x "$tools/usr/sbin/nginx" ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "there is no apt-get here: tests that need Prometheus or nginx will be skipped" >&2
    exit 0
fi

sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
chmod 755 "$packages" # apt downloads as a user of its own
cd "$packages"
# A package may have been replaced since the lists of packages were fetched: then fetch them again
apt-get download -qq prometheus nginx 2>/dev/null || {
    $sudo apt-get update -qq && apt-get download -qq prometheus nginx
} || {
    echo "no packages can be had here: tests that need Prometheus or nginx will be skipped" >&2
    exit 0
}
# Ubuntu 22.04 has the program in nginx-core
dpkg-deb --contents nginx_*.deb | grep 'usr/sbin/nginx$' >/dev/null || apt-get download -qq nginx-core
for package in *.deb; do
    dpkg-deb --extract "$package" "$tools"
done
