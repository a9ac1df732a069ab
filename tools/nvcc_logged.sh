#!/bin/sh
# nvcc as it is called, what ptxas -v says of an object kept beside it: OBJECT.ptxas, for tools/kernel_resources.py.
out= last=
for word in "$@"; do
  [ "$last" = -o ] && out=$word
  last=$word
done
[ -n "$out" ] || exec "$@"
"$@" >"$out.ptxas" 2>&1 && exit 0
code=$?
cat "$out.ptxas" >&2
exit $code
