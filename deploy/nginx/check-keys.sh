#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Check the file of keys. nginx accepts lines in other forms, too, and would then open to other keys. Prints no key.
# nginx's image runs this before nginx, and does not start nginx if it fails. Elsewhere: sh check-keys.sh FILE && nginx ...

LC_ALL=C awk '
function refuse(what) {
    printf "%s: line %d %s: write ~^KEY$ NAME; with 16 or more letters, digits, _ or - for KEY, ", FILENAME, NR, what
    print "letters, digits, _, . or - for NAME, and # before a comment"
    wrong = 1
    exit
}
{ sub(/\r$/, "") }
NR == 1 && /^\357\273\277/ { refuse("begins with a byte order mark, which must go") }
/^[ \t]*(#.*)?$/ { next }
!/^[ \t]*~\^[A-Za-z0-9_-]+\$[ \t]+[A-Za-z0-9_.-]+;[ \t]*(#.*)?$/ { refuse("is not a key and its name") }
{ key = substr($1, 3, length($1) - 3) }
length(key) < 16 { refuse("has a key of only " length(key) " characters") }
key in line { refuse("repeats the key of line " line[key]) }
{ line[key] = NR }
END { exit wrong }
' "${1:-/run/secrets/api_keys}" >&2
