"""Reads from a BitTorrent swarm, and seeding to one, against libtorrent itself and btfs. Part of `scripts/bench`."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

from harness import MIB, ROOT, drop_caches, free_port, list_files, make_large, make_small, need, run, wait_for

PEER = os.path.join(ROOT, "tests/interop/swarm.py")

# Debian's Python, whose module libtorrent is.
PYTHON = "/usr/bin/python3"


class Peer:
    """A libtorrent session with one torrent, that seeds what it has and downloads what it has not."""

    def __init__(self, bench, torrent, directory, peers=(), within=(), settings=None):
        job = {"torrent": torrent, "directory": directory, "peers": list(peers), "no_trackers": True,
               "settings": settings or {}}
        self.bench = bench
        self.process = subprocess.Popen([*within, PYTHON, PEER, json.dumps(job)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        bench.processes.append(self.process)
        self.address = f"127.0.0.1:{self.wait('listening')['port']}"

    def wait(self, event):
        for line in self.process.stdout:
            said = json.loads(line)
            if said["event"] == event:
                return said
        raise SystemExit(f"libtorrent ended before it was {event}")

    def uploaded(self):
        """Returns the bytes of files that others have had of it."""
        self.process.stdin.write("uploaded\n")
        self.process.stdin.flush()
        return self.wait("uploaded")["bytes"]

    def stop(self):
        self.bench.stop(self.process)


class Package:
    """A published package, its .torrent file, and its files as a libtorrent seed has them."""

    def __init__(self, bench, home, name, tree):
        bench.home(home, "publish", tree, "--name", name, "--version", "1.0.0", "--to", "torrent")
        self.name = name
        self.torrent = bench.path(home, f"registry/packages/{name}/1.0.0/{name}-1.0.0.torrent")
        self.directory = bench.path(f"{name}-seed")
        bench.home(home, "fetch", f"{name}@1.0.0", "--mirror", self.directory)

    def seed(self, bench):
        """Starts a libtorrent seed that has checked every piece."""
        seed = Peer(bench, self.torrent, self.directory)
        seed.wait("complete")
        return seed


def swarm(bench):
    parts = (seeding, sequential, company, scattered, small)
    parts = [part for part in parts if bench.wanted(f"swarm {part.__name__}")]
    if not parts:
        return
    need("btfs", "btfs")
    if subprocess.run([PYTHON, "-c", "import libtorrent"], stderr=subprocess.DEVNULL).returncode != 0:
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "python3-libtorrent")
    home = "swarm-publisher"
    bench.home(home, "keygen")
    for part in parts:
        part(bench, home)


def large_package(bench, home):
    tree = bench.path("swarm-large")
    if not os.path.exists(tree):
        os.makedirs(tree)
        make_large(os.path.join(tree, "large"), 512)
        bench.large = Package(bench, home, "large", tree)
    return bench.large


def seeding(bench, home):
    """libtorrent downloads from us, and from libtorrent, by turns."""
    package = large_package(bench, home)
    port = free_port()
    with open(bench.path(home, "config.toml"), "w") as file:
        file.write(f'[torrent]\nlisten = "127.0.0.1:{port}"\nseed = true\n')
    process = bench.start(bench.manifs, "--home", bench.path(home), "serve", "--foreground")
    wait_for("the seed", lambda: seeds(bench, home) == 1)
    rival = package.seed(bench)
    took = {"manifs": [], "libtorrent": []}
    for round_ in range(bench.options.rounds):
        sides = [("manifs", f"127.0.0.1:{port}"), ("libtorrent", rival.address)]
        for who, address in sides if round_ % 2 == 0 else reversed(sides):
            directory = bench.path(f"leech-{who}-{round_}")
            os.makedirs(directory)
            leech = Peer(bench, package.torrent, directory, [address])
            took[who].append(leech.wait("complete")["seconds"])
            leech.stop()
            shutil.rmtree(directory)
    rival.stop()
    bench.stop(process)
    os.remove(bench.path(home, "config.toml"))
    ratios = [theirs / ours for theirs, ours in zip(took["libtorrent"], took["manifs"])]
    bench.row("libtorrent downloads 512 MiB from manifs", [512 / seconds for seconds in took["manifs"]], "MiB/s", None)
    bench.row("the same", ratios, "x", 0.65, "libtorrent's rate")


def seeds(bench, home):
    said = subprocess.run([bench.manifs, "--home", bench.path(home), "-q", "status", "--json"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if said.returncode != 0:
        return 0
    return len((json.loads(said.stdout).get("torrent") or {}).get("seeds", []))


class Reader:
    """A home with nothing but a key, the envelopes and the addresses of peers, mounted."""

    def __init__(self, bench, home, package, name, *peers):
        self.bench, self.name, self.mountpoint = bench, name, bench.path(f"{name}-mnt")
        bench.reader(name, bench.path(home, "registry"), f"[sources]\npeers = {json.dumps(peers)}\n", of=home)
        bench.mount(name, self.mountpoint, package.name)
        self.version = os.path.join(self.mountpoint, package.name, "1.0.0")
        os.listdir(self.version)

    def close(self):
        self.bench.unmount(self.name, self.mountpoint)


def sequential(bench, home):
    """The whole of a cold large file: through the mount, by libtorrent into a directory, through btfs."""
    package = large_package(bench, home)
    seed = package.seed(bench)
    rates, against = [], {"libtorrent": [], "btfs": []}
    for round_ in range(bench.options.rounds):
        took = {}

        def manifs():
            reader = Reader(bench, home, package, f"swarm-{round_}", seed.address)
            took["manifs"] = bench.time("seq", os.path.join(reader.version, "large"), MIB)
            reader.close()

        def libtorrent():
            directory = bench.path(f"swarm-libtorrent-{round_}")
            os.makedirs(directory)
            leech = Peer(bench, package.torrent, directory, [seed.address])
            took["libtorrent"] = leech.wait("complete")["seconds"]
            leech.stop()

        for one in (manifs, libtorrent) if round_ % 2 == 0 else (libtorrent, manifs):
            drop_caches()
            bench.time("seq", os.path.join(package.directory, "large-1.0.0/large"), MIB)
            one()
        rates.append(512 / took["manifs"])
        against["libtorrent"].append(took["libtorrent"] / took["manifs"])
        if round_ == 0:
            # Once: it is slow.
            against["btfs"].append(btfs(bench, package) / took["manifs"])
    seed.stop()
    bench.row("cold sequential read of 512 MiB, one libtorrent seed", rates, "MiB/s", None)
    bench.row("the same", against["libtorrent"], "x", 0.8, "libtorrent's rate")
    bench.row("the same", against["btfs"], "x", 5, "btfs' rate")


def company(bench, home):
    """The whole of a cold large file from an honest libtorrent seed: alone, and beside one that lies and one that stalls."""
    package = large_package(bench, home)
    honest = package.seed(bench)
    garbage = bench.path("swarm-garbage")
    os.makedirs(os.path.join(garbage, "large-1.0.0"))
    for folder, _, names in os.walk(package.directory):
        for name in names:
            path = os.path.join(folder, name)
            copy = os.path.join(garbage, os.path.relpath(path, package.directory))
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            with open(copy, "wb") as file:
                file.truncate(os.path.getsize(path))
    # It believes without a look that these zeros are what the torrent says.
    liar = Peer(bench, package.torrent, garbage, settings={"disable_hash_checks": True})
    liar.wait("complete")
    silent = package.seed(bench)
    silent.process.send_signal(signal.SIGSTOP)
    rates = {"alone": [], "beside": []}
    for round_ in range(bench.options.rounds):
        sides = [("alone", [honest.address]), ("beside", [liar.address, silent.address, honest.address])]
        for who, peers in sides if round_ % 2 == 0 else reversed(sides):
            reader = Reader(bench, home, package, f"company-{who}-{round_}", *peers)
            drop_caches()
            path = os.path.join(reader.version, "large")
            rates[who].append(512 / bench.time("seq", path, MIB))
            run("cmp", path, os.path.join(package.directory, "large-1.0.0/large"))
            reader.close()
    if liar.uploaded() == 0:
        raise SystemExit("nobody asked the peer that lies")
    silent.process.send_signal(signal.SIGCONT)
    for peer in (honest, liar, silent):
        peer.stop()
    ratios = [beside / alone for beside, alone in zip(rates["beside"], rates["alone"])]
    bench.row("the same beside one seed that lies and one that stalls", rates["beside"], "MiB/s", None)
    bench.row("the same", ratios, "x", 0.6, "the honest one alone")


def btfs(bench, package):
    """Returns the seconds that btfs takes for a cold file.

    It is told of no peer, so the seed dials it; and it binds to whatever network there is, so that is a namespace.
    """
    mnt, data, port = bench.path("btfs-mnt"), bench.path("btfs-data"), 6881
    os.makedirs(mnt)
    os.makedirs(data)
    space = bench.network_namespace()
    process = bench.start(*space, "btfs", "-f", f"--data-directory={data}", f"--min-port={port}", f"--max-port={port}",
                          package.torrent, mnt)
    bench.mounts.append(mnt)
    path = os.path.join(mnt, "large-1.0.0/large")
    wait_for("btfs", lambda: os.path.exists(path))
    seed = Peer(bench, package.torrent, package.directory, [f"127.0.0.1:{port}"], within=space)
    seed.wait("complete")
    seconds = bench.time("seq", path, MIB)
    seed.stop()
    run("umount", mnt)
    bench.mounts.remove(mnt)
    bench.stop(process)
    return seconds


def scattered(bench, home):
    """1,000 blocks of 1 MiB in random order."""
    tree = bench.path("swarm-wide")
    os.makedirs(tree)
    make_large(os.path.join(tree, "wide"), 1280)
    package = Package(bench, home, "wide", tree)
    seed = package.seed(bench)
    reader = Reader(bench, home, package, "scattered", seed.address)
    before = seed.uploaded()
    blocks = random.Random(1).sample(range(1280), 1000)
    took = []
    with open(os.path.join(reader.version, "wide"), "rb", buffering=0) as file:
        for block in blocks:
            start = time.monotonic()
            got = os.pread(file.fileno(), MIB, block * MIB)
            took.append((time.monotonic() - start) * 1000)
            if len(got) != MIB:
                raise SystemExit(f"block {block}: {len(got)} bytes")
    fetched = seed.uploaded() - before
    reader.close()
    seed.stop()
    took.sort()
    bench.row("1,000 random reads of 1 MiB, one libtorrent seed, p50", [took[500]], "ms", 15, better="lower")
    bench.row("the same, p99", [took[990]], "ms", 60, better="lower")
    bench.row("bytes fetched for them", [fetched / (1000 * MIB)], "x", 1.1, "bytes read", better="lower")


def small(bench, home):
    """10,000 cold small files, in order."""
    tree = bench.path("swarm-small")
    os.makedirs(tree)
    make_small(tree, 10_000)
    package = Package(bench, home, "small", tree)
    seed = package.seed(bench)
    rates = []
    for round_ in range(bench.options.rounds):
        reader = Reader(bench, home, package, f"small-{round_}", seed.address)
        list_files(reader.version, bench.path("list-swarm"), shuffled=False)
        rates.append(10_000 / bench.time("files", bench.path("list-swarm")))
        reader.close()
    seed.stop()
    bench.row("10,000 cold files of 4 KiB, one libtorrent seed", rates, "files/s", 2000)
