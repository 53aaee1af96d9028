#!/bin/sh
# Fills a folder, on a machine with network, with all that install.sh needs on one without:
#   sh deploy/wheels.sh pi|topside DIR                                for machines like this one
#   sh deploy/wheels.sh pi|topside DIR --for aarch64 --python 3.13    for another kind (aarch64, x86_64, ...)
#
# Downloads are held against the hashes in requirements/; then DIR/pi.txt or DIR/topside.txt gets those of the
# wheels themselves, also of the ones that were compiled here, and install.sh takes nothing else.
#   sh deploy/wheels.sh seal pi|topside DIR                           only that last step
set -eu
here=$(cd "${0%/*}/.." && pwd)
usage='usage: sh deploy/wheels.sh pi|topside DIR [--for MACHINE] [--python VERSION]'

fail() {
    echo "$1" >&2
    exit 1
}

pip() {
    "$scratch/venv/bin/python" -I -m pip --disable-pip-version-check --no-input "$@"
}

# The daemons' own wheel, from a copy: a build leaves files behind. Its C kernel fits this kind of machine only.
build_ours() {
    mkdir "$scratch/source"
    (cd "$here" && cp -R common pi_daemon topside_daemon requirements pyproject.toml README.md LICENSE "$scratch/source")
    if [ "$machine$version" ]; then
        rm -f "$scratch/source/topside_daemon/fusion/kernel/kernel.so"
        export CC=false
    fi
    pip wheel -qq --no-deps --wheel-dir "$folder" "$scratch/source"
}

fetch() {
    if [ -z "$machine$version" ]; then
        pip wheel -qq --require-hashes --no-deps --wheel-dir "$folder" -r "$lock"
        return
    fi
    set -- --only-binary=:all: --no-deps --dest "$folder"
    for glibc in 2_28 2_26 2_17; do
        set -- "$@" --platform "manylinux_${glibc}_${machine:-$(uname -m)}"
    done
    pip download -qq --require-hashes "$@" ${version:+--python-version "$version"} -r "$lock" ||
        fail "$machine${version:+ with Python $version} has no wheel of something: make the folder on such a machine instead"
}

seal() {
    sealed=$folder/$role.txt
    : >"$sealed.new"
    for wheel in "$folder"/*.whl; do
        [ -e "$wheel" ] || fail "$folder holds no wheels"
        name=${wheel##*/}
        rest=${name#*-}
        sum=$("$python" -I -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$wheel")
        echo "${name%%-*}==${rest%%-*} --hash=sha256:$sum" >>"$sealed.new"
    done
    mv "$sealed.new" "$sealed"
}

machine='' version='' fetching=yes
if [ "${1:-}" = seal ]; then
    fetching=''
    shift
fi
[ $# -ge 2 ] || fail "$usage"
role=$1 folder=$2
lock=$here/requirements/runtime.txt
case $role in
    pi) lock=$here/requirements/pi.txt ;;
    topside) ;;
    *) fail "$usage" ;;
esac
shift 2
while [ $# -gt 0 ]; do
    case $1 in
        --for) machine=${2:?"$usage"} ;;
        --python) version=${2:?"$usage"} ;;
        *) fail "$usage" ;;
    esac
    shift 2
done

python=$(sh "$here/requirements/install.sh" python)
if [ "$fetching" ]; then
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    rm -f "$folder"/*.whl "$folder"/pi.txt "$folder"/topside.txt
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    "$python" -I -m venv "$scratch/venv"
    fetch
    build_ours
fi
seal
echo "$folder: $(wc -l <"$sealed") wheels; next, where they are to be used: sudo sh deploy/install.sh $role --wheels $folder"
