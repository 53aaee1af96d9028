#!/bin/sh
# Makes a daemon a service of this machine, started at boot and kept running:
#   sudo sh deploy/install.sh pi|topside                 with network
#   sudo sh deploy/install.sh pi|topside --wheels DIR    without; deploy/wheels.sh has filled DIR elsewhere
# Run again it upgrades, or changes nothing. An open session goes on.
#   sudo sh deploy/install.sh remove [pi|topside]        takes it away; sessions, keys and changed
#                                                        configuration stay, and the user that owns them
# With --root DIR it works in a folder that is not the running system, and starts nothing.
set -eu
here=$(cd "${0%/*}/.." && pwd)
usage='usage: sh deploy/install.sh pi|topside [--wheels DIR] [--root DIR], or remove [pi|topside] [--root DIR]'

fail() {
    echo "$1" >&2
    exit 1
}

# Of the running system, or of --root.
system() {
    tool=$1
    shift
    "$tool" ${root:+--root="$root"} "$@"
}

unit() {
    echo "$root/etc/systemd/system/qsensor-$1.service"
}

# Copies a file to its place, unless it is there; what was done is remembered in "changed".
put() {
    cmp -s "$here/deploy/$1" "$root$2" && return
    mkdir -p "$root${2%/*}"
    install -m 644 "$here/deploy/$1" "$root$2"
    changed=yes
}

check_machine() {
    if [ -z "$root" ]; then
        [ "$(id -u)" = 0 ] || fail "only root may do this: sudo sh deploy/install.sh $*"
        [ -d /run/systemd/system ] ||
            fail "this machine is not run by systemd: start the daemon in a terminal, deploy/README.md says how"
    fi
    for tool in systemctl systemd-sysusers; do
        command -v "$tool" >/dev/null || fail "$tool is not there: \"apt install systemd\" cures it"
    done
}

# Sets lock: what is to be installed, from --wheels or fetched now. Topside's is all of the Pi's and more.
find_wheels() {
    kind=$role
    if [ -e "$(unit topside)" ]; then kind=topside; fi
    if [ -z "$wheels" ]; then
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT
        wheels=$scratch/wheels
        echo "fetching wheels ..."
        sh "$here/deploy/wheels.sh" "$kind" "$wheels" >/dev/null
    fi
    for lock in "$wheels/$kind.txt" "$wheels/topside.txt"; do
        [ -e "$lock" ] && return
    done
    fail "$wheels has no $kind.txt: \"sh deploy/wheels.sh $kind $wheels\", on a machine with network, makes it"
}

# What the virtual environment is made of: interpreter and wheels.
record() {
    "$python" -I -c 'import os, sys; print("#", sys.version, os.path.realpath(sys.executable))'
    cat "$lock"
}

# A new environment is made beside the old one, whose daemons run on, and takes its place when it is whole.
make_venv() {
    if [ -e "$venv/installed.txt" ] && record | cmp -s - "$venv/installed.txt"; then return; fi
    changed=yes
    echo "setting up $venv ..."
    rm -rf "$venv.new" "$venv.old"
    mkdir -p "${venv%/*}"
    "$python" -I -m venv "$venv.new"
    if ! "$venv.new/bin/python" -I -m pip --disable-pip-version-check --no-input install -qq \
        --no-index --require-hashes --find-links "$wheels" -r "$lock"; then
        rm -rf "$venv.new"
        fail "$wheels is not complete, or not for $("$python" --version) on $(uname -m), see above: \
make it on such a machine, or with --for and --python of deploy/wheels.sh"
    fi
    find "$venv.new/bin" -type f -exec sed -i "s|$venv.new|$venv|g" {} +
    record >"$venv.new/installed.txt"
    if [ -e "$venv" ]; then mv "$venv" "$venv.old"; fi
    mv "$venv.new" "$venv"
    rm -rf "$venv.old"
}

# The example stays beside the configuration: one that is equal to it was never changed.
put_configuration() {
    own=$root/etc/qsensor/$role.toml
    if [ ! -e "$own" ] || cmp -s "$own" "$own.example"; then put "$role.toml" "/etc/qsensor/$role.toml"; fi
    put "$role.toml" "/etc/qsensor/$role.toml.example"
}

tell_udev() {
    if [ "$root" ] || ! udevadm control --reload 2>/dev/null; then return; fi
    udevadm trigger --action=add --subsystem-match=usb-serial --subsystem-match=tty || true
}

start() {
    system systemctl enable --quiet "qsensor-$role"
    if [ "$root" ]; then return; fi
    if [ -z "$changed" ]; then
        systemctl start "qsensor-$role"
        return
    fi
    systemctl daemon-reload
    systemctl try-restart "qsensor-*.service" 2>/dev/null || true # the other daemon, if it is here, runs on this too
    systemctl start "qsensor-$role" 2>/dev/null || fail "installed, but qsensor-$role does not start: $(last_word)"
}

# The newest line that the daemon itself has written.
last_word() {
    journalctl -o cat -n 1 _SYSTEMD_UNIT="qsensor-$role.service" 2>/dev/null || echo "journalctl -u qsensor-$role says why"
}

# A service does not see home folders (ProtectHome=).
find_python() {
    python=$(sh "$here/requirements/install.sh" python)
    real=$("$python" -I -c 'import os, sys; print(os.path.realpath(sys.executable))')
    case $real in
        /home/* | ~root/* | /run/user/*)
            [ "$root" ] ||
                fail "$real lies in a home folder, which a service cannot see: PYTHON=/usr/bin/python3 before sh cures it"
            ;;
    esac
}

install_role() {
    find_python
    find_wheels
    make_venv
    put qsensor.sysusers /etc/sysusers.d/qsensor.conf
    system systemd-sysusers qsensor.conf 2>/dev/null
    put qsensor.rules /etc/udev/rules.d/70-qsensor.rules
    tell_udev
    put_configuration
    put "qsensor-$role.service" "/etc/systemd/system/qsensor-$role.service"
    start
    echo "qsensor-$role is installed. Next: sudoedit /etc/qsensor/$role.toml, then sudo systemctl restart qsensor-$role"
    for port in "$root"/dev/serial/by-id/*; do
        if [ -e "$port" ]; then echo "  a serial port here: $port"; fi
    done
}

remove_role() {
    [ -e "$(unit "$1")" ] || return 0
    if [ "$root" ]; then system systemctl disable --quiet "qsensor-$1"; else systemctl disable --quiet --now "qsensor-$1"; fi
    rm -f "$(unit "$1")"
    own=$root/etc/qsensor/$1.toml
    if cmp -s "$own" "$own.example"; then rm -f "$own"; fi
    rm -f "$own.example"
    if [ -z "$root" ]; then systemctl daemon-reload; fi
}

remove_roles() {
    for each in ${role:-pi topside}; do remove_role "$each"; done
    if [ -e "$(unit pi)" ] || [ -e "$(unit topside)" ]; then
        echo "removed: qsensor-$role; the other daemon stays"
        return
    fi
    rm -rf "$venv" "$venv.new" "$venv.old"
    rm -f "$root/etc/sysusers.d/qsensor.conf" "$root/etc/udev/rules.d/70-qsensor.rules"
    rmdir "$root/etc/qsensor" 2>/dev/null || true
    tell_udev
    # A number that is free again would be given to somebody else, with everything that it owns.
    echo "removed. Left: $root/var/lib/qsensor, changed files in $root/etc/qsensor, and the user qsensor that owns the sessions"
}

verb=install_role role='' wheels='' root='' changed='' asked=$*
while [ $# -gt 0 ]; do
    case $1 in
        pi | topside) role=$1 ;;
        remove | uninstall) verb=remove_roles ;;
        --wheels | --root)
            [ -d "${2:-}" ] || fail "$1 ${2:-}: no such folder"
            folder=$(cd "$2" && pwd)
            if [ "$1" = --root ]; then root=$folder; else wheels=$folder; fi
            shift
            ;;
        *) fail "$usage" ;;
    esac
    shift
done
if [ $verb = install_role ] && [ -z "$role" ]; then fail "$usage"; fi
if [ "$root" = / ]; then root=''; fi
venv=$root/opt/qsensor
# shellcheck disable=SC2086 # the words as they were given
check_machine $asked
$verb
