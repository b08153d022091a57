#!/bin/sh
# Puts a binary and what it needs to run into a folder, which is then the whole image: assemble.sh BINARY FOLDER [PROGRAM DATA]
# PROGRAM is one that the binary starts, and DATA its folder; both keep their places, as Tesseract's have to:
# /usr/bin/tesseract /usr/share/tesseract-ocr
set -eu
binary=$1
out=$2
program=${3:-}
data=${4:-}
strip_tool=$(command -v strip || true)

# The loader and the libraries, at the paths where a binary looks for them.
add_libraries() {
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$out$(dirname "$library")"
        cp -L "$library" "$out$library"
    done
}

mkdir -p "$out/usr/bin" "$out/etc/ssl/certs" "$out/tmp"
chmod 1777 "$out/tmp"
cp "$binary" "$out/usr/bin/medfleet-service"
# Line tables are half of the file; a backtrace keeps its names without them.
if [ -n "$strip_tool" ]; then "$strip_tool" --strip-debug "$out/usr/bin/medfleet-service"; fi
add_libraries "$binary"
if [ -n "$program" ]; then
    mkdir -p "$out$(dirname "$program")" "$out$(dirname "$data")"
    cp -L "$program" "$out$program"
    cp -RL "$data" "$out$data"
    add_libraries "$program"
fi
# Names are resolved by glibc's own plug-ins.
for plugin in libnss_dns.so.2 libnss_files.so.2 libresolv.so.2; do
    path=$(ldconfig -p | sed -n "s|.*$plugin .*=> ||p" | head -n 1)
    if [ -n "$path" ]; then mkdir -p "$out$(dirname "$path")" && cp -L "$path" "$out$path"; fi
done
printf 'hosts: files dns\n' > "$out/etc/nsswitch.conf"
printf 'medfleet:x:65532:65532::/:/nonexistent\n' > "$out/etc/passwd"
cp -L /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/ca-certificates.crt"
# The container's user is not who builds this, whose files and folders may be for nobody else (umask 077).
chmod -R a+rX "$out"
