#!/bin/sh
# Puts a binary and what it needs to run into a folder, which is then the whole image: assemble.sh BINARY FOLDER
set -eu
binary=$1
out=$2
strip_tool=$(command -v strip || true)

mkdir -p "$out/usr/bin" "$out/etc/ssl/certs" "$out/tmp"
chmod 1777 "$out/tmp"
cp "$binary" "$out/usr/bin/medfleet-service"
# Line tables are half of the file; a backtrace keeps its names without them.
if [ -n "$strip_tool" ]; then "$strip_tool" --strip-debug "$out/usr/bin/medfleet-service"; fi

# The loader and the libraries, at the paths where the binary looks for them.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$out$(dirname "$library")"
    cp -L "$library" "$out$library"
done
# Names are resolved by glibc's own plug-ins.
for plugin in libnss_dns.so.2 libnss_files.so.2 libresolv.so.2; do
    path=$(ldconfig -p | sed -n "s|.*$plugin .*=> ||p" | head -n 1)
    if [ -n "$path" ]; then mkdir -p "$out$(dirname "$path")" && cp -L "$path" "$out$path"; fi
done
printf 'hosts: files dns\n' > "$out/etc/nsswitch.conf"
printf 'medfleet:x:65532:65532::/:/nonexistent\n' > "$out/etc/passwd"
cp -L /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/ca-certificates.crt"
