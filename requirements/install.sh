#!/bin/sh
# Makes .venv hold what a lock file names:  sh requirements/install.sh runtime|dev|peers
# Each of these adds to the one before and changes nothing of it.
# With "missing": installs nothing, only says what this machine lacks and the command that cures it.
# With "python": likewise, else prints the interpreter that it would take.
#
# .venv keeps a record of what was installed completely. It is taken away before anything changes,
# so that an interrupted set-up is started over and never trusted.
set -eu
cd "${0%/*}/.."

fail() {
    echo "$1" >&2
    exit 1
}

new_enough() {
    [ "$("$1" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)" = True ]
}

# Sets python: $PYTHON if given, else python3, else a newer one installed beside it.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11
    fi
    for python; do
        new_enough "$python" && return
    done
    version=$("$1" --version 2>&1) ||
        fail "$1 is not there or does not run: \"sudo apt install python3 python3-venv\" cures it"
    fail "$1 is $version, 3.11 or newer is needed: \"sudo apt install python3.11 python3.11-venv\" cures it, \
or PYTHON=/path/to/python3.11 before make"
}

need_venv() {
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 && return
    case ${python##*/} in
        python3.*) package=${python##*/}-venv ;;
        *) package=python3-venv ;;
    esac
    fail "$python has no venv module: \"sudo apt install $package\" cures it"
}

# What .venv must be made of: interpreter, place (scripts hold it) and lock file.
record() {
    "$python" -c 'import os, sys; print("#", sys.version, os.path.realpath(sys.executable), os.getcwd())'
    cat "requirements/$1.txt"
}

installed() {
    [ -f ".venv/$1.txt" ] && record "$1" | cmp -s - ".venv/$1.txt"
}

pip() {
    .venv/bin/python -m pip --disable-pip-version-check --no-input install -qq "$@"
}

install() {
    echo "setting up .venv ..."
    whole=$(installed runtime && echo yes || true)
    rm -f .venv/runtime.txt .venv/dev.txt .venv/peers.txt
    # A demo may be running from a whole one.
    [ "$whole" ] || "$python" -m venv --clear .venv
    pip --require-hashes -r "requirements/$1.txt"
    if [ "$1" != runtime ]; then
        pip --no-index --no-deps --no-build-isolation --editable .
        record dev >.venv/dev.txt
        if [ "$1" = peers ]; then record peers >.venv/peers.txt; fi
    fi
    record runtime >.venv/runtime.txt
}

find_python
need_venv
case ${1:-} in
    missing) ;;
    python) command -v "$python" ;;
    runtime | dev | peers)
        # Two makes at once take turns; where there is no flock they had better not be started.
        exec 9<requirements
        if command -v flock >/dev/null; then flock 9; fi
        installed "$1" || install "$1"
        ;;
    *) fail "usage: sh requirements/install.sh runtime|dev|peers|missing|python" ;;
esac
