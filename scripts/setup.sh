#!/usr/bin/env bash
# Makes .venv ready for `make build`: Debian packages, a Python, the tools. Every step that is already done is skipped.
#
#   scripts/setup.sh system   compiler, headers, a usable Python (installed when root, else named in one line)
#   scripts/setup.sh venv     the virtual environment and the tools of the `dev` group
#   scripts/setup.sh peers    what the benchmarks compare with; as root only, and never required
#   scripts/setup.sh faults   what tests use to break real devices; as root only, and never required
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VENV=.venv
readonly CC=${CC:-cc}

say() { printf 'fanout: %s\n' "$*" >&2; }

# A Python that can make a virtual environment and compile against itself.
usable_python() {
    "$1" - >/dev/null 2>&1 <<'PY'
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(header)))
PY
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if command -v "$candidate" >/dev/null && usable_python "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

has_header() { echo "#include <$1>" | "$CC" -E -x c - >/dev/null 2>&1; }

missing_packages() {
    local packages=()
    if command -v "$CC" >/dev/null && has_header stdio.h; then
        has_header liburing.h || packages+=(liburing-dev)
        has_header xxhash.h || packages+=(libxxhash-dev)
    else
        packages+=(gcc libc6-dev liburing-dev libxxhash-dev)
    fi
    find_python >/dev/null || packages+=(python3 python3-dev python3-venv)
    echo "${packages[*]}"
}

# install WHY PACKAGE...: quiet, unless it fails.
install() {
    local why=$1 log
    shift
    say "installing $*$why"
    log=$(mktemp)
    if ! { apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        say "apt-get could not install $*"
        return 1
    fi
    rm -f "$log"
}

system() {
    local packages
    packages=$(missing_packages)
    [ -z "$packages" ] && return
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "install these packages first: $packages (Debian: sudo apt-get install $packages)"
        exit 1
    fi
    # shellcheck disable=SC2086 # a list of package names
    install '' $packages
    packages=$(missing_packages)
    if [ -n "$packages" ]; then
        say "still missing after apt-get install: $packages"
        exit 1
    fi
}

venv() {
    if ! "$VENV/bin/python" -c 'import pip' >/dev/null 2>&1; then
        local python
        python=$(find_python)
        say "making $VENV with $python"
        "$python" -m venv --clear "$VENV" # never --system-site-packages
    fi
    # Dependency groups came with pip 25.1; Debian 12 has 23.
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --group dev
}

# Tests that find one of these missing are skipped, and the end of the run says so.
faults() {
    local packages=()
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 0
    command -v fusermount3 >/dev/null || packages+=(fuse3)
    command -v strace >/dev/null || packages+=(strace)
    command -v mkfs.ext4 >/dev/null || packages+=(e2fsprogs)
    command -v losetup >/dev/null || packages+=(mount)
    command -v nbdkit >/dev/null || packages+=(nbdkit)
    command -v nbdfuse >/dev/null || packages+=(libnbd-bin)
    [ ${#packages[@]} -eq 0 ] && return
    install ' for the tests that break real devices' "${packages[@]}"
}

# A peer that is missing is left out, and the result says so.
peers() {
    local packages=()
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 0
    command -v fio >/dev/null || packages+=(fio)
    command -v rclone >/dev/null || packages+=(rclone)
    command -v mkfs.btrfs >/dev/null || packages+=(btrfs-progs)
    command -v losetup >/dev/null || packages+=(mount)
    [ ${#packages[@]} -eq 0 ] && return
    install ' for the benchmarks' "${packages[@]}"
}

case ${1:-} in
    system) system ;;
    venv) venv ;;
    faults) faults ;;
    peers) peers ;;
    *) say "usage: scripts/setup.sh system|venv|faults|peers"; exit 2 ;;
esac
