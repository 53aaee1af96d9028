#!/bin/sh
# The start of the container: a configuration that the user can change, if there is none, then the daemon.
set -eu
data=${QSENSOR_DATA:-/data}
if [ ! -e "$data/pi.toml" ]; then
    mkdir -p "$data"
    cp "${0%/*}/pi.toml" "$data/pi.toml"
fi
exec python -m pi_daemon --config "$data/pi.toml" --data "$data/recordings" "$@"
