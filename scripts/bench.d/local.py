"""One machine and one gateway: publishing, stored reads, cold reads, versions of many files."""

import json
import os
import re
import shutil
import socket
import time

from harness import MIB, drop_caches, free_port, list_files, make_large, make_small, run, run_measured, wait_for


def publish(bench):
    tree = bench.path("publish-tree")
    os.makedirs(tree)
    make_large(os.path.join(tree, "large"), 1024)
    rates, memory = [], []
    for round_ in range(bench.options.rounds):
        bench.time("seq", os.path.join(tree, "large"), MIB)
        home = f"publish-{round_}"
        bench.home(home, "keygen")
        took, resident = bench.publish(home, tree, "pkg")
        rates.append(1024 / took)
        memory.append(resident)
        shutil.rmtree(bench.path(home))
    bench.row("publish, 1 GiB file, page cache warm", rates, "MiB/s", 400)
    bench.row("the most memory it had", memory, "MiB", None, better="lower")
    shutil.rmtree(tree)
    again(bench)


def again(bench):
    """A tree of 10,000 files, then the same with one file changed."""
    tree = bench.path("again-tree")
    os.makedirs(tree)
    make_small(tree, 10_000, 16 << 10)
    first, ratios = [], []
    for round_ in range(bench.options.rounds):
        home = f"again-{round_}"
        bench.home(home, "keygen")
        took = []
        for version in ("1.0.0", "1.0.1"):
            took.append(run_measured(bench.manifs, "--home", bench.path(home), "-q", "publish", tree, "--name", "pkg",
                                     "--version", version)[0])
            with open(os.path.join(tree, "d004/f004321"), "ab") as file:
                file.write(b"changed")
        first.append(took[0])
        ratios.append(took[1] / took[0])
    bench.row("publish of 10,000 files of 16 KiB", first, "s", None, better="lower")
    bench.row("the same with one of them changed", ratios, "x", 0.1, "the first time", better="lower")
    shutil.rmtree(tree)


def stored(bench, mnt, bind, native):
    """Reads of what is stored and verified."""
    # A second bindfs that may keep pages: what the kernel's FUSE page cache can do, whoever fills it.
    cached = bench.path("bind-cached")
    bench.bindfs(native, cached, "-o", "kernel_cache")
    large = "large"
    rounds = bench.options.rounds
    files = {"native": os.path.join(native, large), "bindfs": os.path.join(bind, large), "manifs": os.path.join(mnt, large)}
    bench.time("seq", files["manifs"], MIB)
    ratios = {"native": [], "bindfs": []}
    for _ in range(rounds):
        took = {}
        for who, path in files.items():
            drop_caches()
            took[who] = bench.time("seq", path, 128 << 10)
        for who in ratios:
            ratios[who].append(took[who] / took["manifs"])
    bench.row("sequential read, stored, page caches dropped", ratios["native"], "x", 0.5, "native")
    bench.row("sequential read, stored, page caches dropped", ratios["bindfs"], "x", None, "bindfs")
    # Random reads: the mounts' own pages are dropped, the store's are warm.
    warm, cold = [], []
    for _ in range(rounds):
        took = {}
        for who in ("bindfs", "manifs"):
            for path in bench.backing("bindfs" if who == "bindfs" else "reader", native):
                bench.time("seq", path, MIB)
            run(bench.reader_tool, "forget", files[who])
            took[who] = bench.time("rand", files[who], 20000, 4096)
        warm.append(took["bindfs"] / took["manifs"])
        for who in ("bindfs", "manifs"):
            drop_caches()
            took[who] = bench.time("rand", files[who], 4000, 4096)
        cold.append(took["bindfs"] / took["manifs"])
    bench.row("4 KiB random reads, store in page cache", warm, "x", 1.3, "bindfs")
    bench.row("4 KiB random reads, nothing in page cache", cold, "x", 0.9, "bindfs")
    # In the page cache.
    small, whole = [], {"native": [], "bindfs": []}
    lists = {}
    for who, tree in (("native", native), ("manifs", mnt)):
        lists[who] = bench.path(f"list-{who}")
        list_files(os.path.join(tree, "small"), lists[who])
    for _ in range(rounds):
        took = {}
        for who in lists:
            bench.time("files", lists[who])
            took[who] = min(bench.time("files", lists[who]) for _ in range(3))
        small.append(took["native"] / took["manifs"])
        whole_file = {**files, "bindfs": os.path.join(cached, large)}
        for who, path in whole_file.items():
            # Read in order after a drop, so that the pages of all lie alike.
            run(bench.reader_tool, "forget", path)
            bench.time("seq", path, MIB)
        for _ in range(3):
            for who, path in whole_file.items():
                took.setdefault(f"{who} whole", []).append(bench.time("seq", path, MIB))
        for who in whole:
            whole[who].append(min(took[f"{who} whole"]) / min(took["manifs whole"]))
    bench.row("open+read+close of 10,000 small files, in page cache", small, "x", 0.6, "native")
    bench.row("read of a large file, in page cache", whole["native"], "x", 0.8, "native")
    bench.row("read of a large file, in page cache", whole["bindfs"], "x", None, "bindfs cached")


def cold(bench, url):
    """Nothing stored: everything comes through one local gateway, or for rclone from a web server of the same tree."""
    port = free_port()
    web = bench.start(bench.rclone, "serve", "http", bench.path("tree"), "--addr", f"127.0.0.1:{port}", "--read-only")
    wait_for("the web server", lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    rates, against_large, against_small, first = [], [], [], []
    took = {}

    def manifs(round_):
        name, mnt = f"cold-{round_}", bench.path(f"cold-mnt-{round_}")
        bench.reader(name, url)
        bench.mount(name, mnt)
        version = os.path.join(mnt, "bench/1.0.0")
        os.listdir(version)
        first.append(bench.time("first", os.path.join(version, "first")) / 1000)
        took["large"] = bench.time("seq", os.path.join(version, "large"), MIB)
        list_files(os.path.join(version, "small"), bench.path("list-cold"), shuffled=False)
        took["small"] = bench.time("files", bench.path("list-cold"))
        # Its home stays until the end: ext4 will not give an inode out again for minutes after it was freed, and walks
        # over all of them for each new file, so that a deleted store would slow down the next one (measured: 4x).
        bench.unmount(name, mnt)

    def rclone(round_):
        mnt = bench.path(f"rclone-mnt-{round_}")
        os.makedirs(mnt)
        process = bench.start(bench.rclone, "mount", f":http,url='http://127.0.0.1:{port}':", mnt, "--read-only",
                              "--vfs-cache-mode", "off", "--dir-cache-time", "1h")
        wait_for("rclone's mount", lambda: os.path.ismount(mnt))
        bench.mounts.append(mnt)
        os.listdir(mnt)
        took["rclone large"] = bench.time("seq", os.path.join(mnt, "large"), MIB)
        list_files(os.path.join(mnt, "small"), bench.path("list-rclone"), shuffled=False)
        took["rclone small"] = bench.time("files", bench.path("list-rclone"))
        run("umount", "-l", mnt)
        bench.mounts.remove(mnt)
        bench.stop(process)

    for round_ in range(bench.options.rounds):
        # Whoever comes second finds memory that the first one left, so they take turns; what is served is in the cache.
        for one in (manifs, rclone) if round_ % 2 == 0 else (rclone, manifs):
            drop_caches()
            bench.time("seq", bench.path("tree/large"), MIB)
            for path in bench.backing("publisher", None):
                bench.time("seq", path, MIB)
            one(round_)
        rates.append(512 / took["large"])
        against_large.append(took["rclone large"] / took["large"])
        against_small.append(took["small"] / took["rclone small"])
    bench.stop(web)
    bench.row("cold sequential read of 512 MiB, one local gateway", rates, "MiB/s", 300)
    bench.row("cold sequential read of 512 MiB", against_large, "x", 1.0, "rclone's rate")
    bench.row("10,000 cold files of 4 KiB", against_small, "x", 0.4, "rclone's time", better="lower")
    bench.row("first 4 KiB, catalog installed", first, "ms", 20, better="lower")


def crowd(bench):
    """A version of a million files."""
    count = 1_000_000 if bench.options.full else 200_000
    tree = bench.path("crowd-tree")
    os.makedirs(tree)
    for index in range(count):
        below = os.path.join(tree, f"d{index // 1000:04}")
        if index % 1000 == 0:
            os.makedirs(below)
        with open(os.path.join(below, f"file-{index:07}"), "wb"):
            pass
    hundred = bench.path("hundred-tree")
    os.makedirs(hundred)
    for index in range(100_000):
        below = os.path.join(hundred, f"d{index // 1000:04}")
        if index % 1000 == 0:
            os.makedirs(below)
        with open(os.path.join(below, f"file-{index:07}"), "wb"):
            pass
    took, memory = bench.publish("publisher", tree, "crowd")
    bench.home("publisher", "publish", hundred, "--name", "hundred", "--version", "1.0.0")
    url, server = bench.serve("publisher")
    listed, entered, rss = [], [], []
    for round_ in range(bench.options.rounds):
        name, mnt = f"crowd-{round_}", bench.path(f"crowd-mnt-{round_}")
        bench.reader(name, url)
        bench.mount(name, mnt, "crowd")
        start = time.monotonic()
        os.listdir(os.path.join(mnt, "crowd"))
        listed.append((time.monotonic() - start) * 1000)
        start = time.monotonic()
        os.listdir(os.path.join(mnt, "crowd/1.0.0"))
        entered.append((time.monotonic() - start) * 1000)
        pid = json.loads(bench.home(name, "status", "--json"))["pid"]
        with open(f"/proc/{pid}/status") as file:
            rss.append(int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) / 1024)
        bench.unmount(name, mnt)
    bench.row(f"publish of {count:,} empty files", [took], "s", None, better="lower")
    bench.row("the most memory it had", [memory], "MiB", None, better="lower")
    bench.row(f"ls of a package whose version has {count:,} files", listed, "ms", None, better="lower")
    bench.row(f"entering a version of {count:,} files", entered, "ms", None, better="lower")
    bench.row("resident memory afterwards", rss, "MiB", 96, better="lower")
    ratios = []
    for round_ in range(bench.options.rounds):
        took = {}
        name, mnt = "crowd-0", bench.path("find-mnt")
        bench.mount(name, mnt, "hundred")
        os.listdir(os.path.join(mnt, "hundred/1.0.0"))
        bind = bench.path("find-bind")
        bench.bindfs(hundred, bind)
        for who, where in (("manifs", os.path.join(mnt, "hundred/1.0.0")), ("bindfs", bind)):
            start = time.monotonic()
            run("find", where, "-size", "+1", "-print")
            took[who] = time.monotonic() - start
        ratios.append(took["manifs"] / took["bindfs"])
        bench.unmount(name, mnt)
        run("umount", "-l", bind)
        bench.mounts.remove(bind)
    bench.row("find with stat over 100,000 files, first pass", ratios, "x", 1.0, "bindfs' time", better="lower")
    bench.stop(server)
    shutil.rmtree(tree)
    shutil.rmtree(hundred)
