#!/bin/sh
# Makes what deploy/compose.yaml needs and is not there: ./secrets (the fleet's key, NATS's token, a client's token and its hash)
# and ./data, the folder of the streams. And lets everybody read the demo model, which a checkout may keep to its owner.
set -eu
cd "$(dirname "$0")"
random() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
umask 027
mkdir -p data
if [ -e secrets ]; then
    echo "secrets is there already: remove it to make new ones (stored blobs are then lost)"
else
    mkdir secrets
    nats="nt_$(random)"
    token="mf_$(random)"
    random > secrets/store-key
    printf '%s' "$nats" > secrets/nats-token
    printf 'authorization { token: "%s" }\n' "$nats" > secrets/nats-auth.conf
    printf '%s\n' "$token" > secrets/token
    printf '[[token]]\nname = "local"\ntenant = "local"\nsha256 = "%s"\n' "$(printf %s "$token" | sha256sum | cut -d' ' -f1)" > secrets/tokens.toml
fi
if [ -d demo ]; then chmod -R a+rX demo; fi
# The containers run as 65532: they read the secrets as their group and own the data. Who is not root may give files away to a
# user of rootless podman's own; without that everybody on this machine gets them. Also what was there: a folder that is missing
# when the containers start is made by docker, for root alone.
give() {
    "$@" 2>/dev/null || podman unshare "$@" 2>/dev/null
}
if ! { give chgrp -R 65532 secrets && give chown 65532:65532 data; }; then
    chmod -R o+rX secrets
    chmod 777 data
    echo "every user of this machine can read $PWD/secrets and write $PWD/data: run this as root, or close the folder above" >&2
fi
