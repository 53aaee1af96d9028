#!/bin/sh
# The start of the container: a configuration that the user can change, if there is none, then the daemon.
set -eu
data=${QSENSOR_DATA:-/data}
if [ ! -e "$data/pi.toml" ]; then
    mkdir -p "$data"
    cp "${0%/*}/pi.toml" "$data/pi.toml"
fi
# What the container of the old API was given by the environment is heeded too.
exec python -m pi_daemon --config "$data/pi.toml" --data "${CHUNK_RECORDING_PATH:-$data/recordings}" \
    ${SERIAL_PORT:+--serial "$SERIAL_PORT"} ${SERIAL_BAUD:+--baud "$SERIAL_BAUD"} \
    ${API_PORT:+--http "${API_HOST:-0.0.0.0}:$API_PORT"} "$@"
