#!/usr/bin/env python3
"""Makes the seeds of fuzz/corpus from the vectors of other programs. Run it in the repository's root; it removes nothing."""

import base64
import hashlib
import json
import pathlib
import struct

VECTORS = pathlib.Path("tests/data/vectors")
CORPUS = pathlib.Path("fuzz/corpus")


def seed(target, name, data):
    path = CORPUS / target
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(data)


def content(value):
    if "hex" in value:
        return bytes.fromhex(value["hex"])
    if "text" in value:
        return value["text"].encode()
    if "repeat" in value:
        return bytes.fromhex(value["repeat"]) * value["times"]
    return b"".join(content(part) for part in value["concat"])


def varint(number):
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def car(blocks):
    header = b"\xa2\x65roots\x81\xd8\x2a\x58\x25\x00" + blocks[0][0] + b"\x67version\x01"
    out = varint(len(header)) + header
    for cid, data in blocks:
        out += varint(len(cid) + len(data)) + cid + data
    return out


def unixfs():
    vectors = json.loads((VECTORS / "unixfs.json").read_text())
    chosen = ["v1-two-chunks", "v0-two-chunks", "v1-empty-dir", "planets-v1", "planets-v0", "symlink-tree-v1", "v0-symlink",
              "v0-hello", "x-hamt-2", "x-hamt-collide-0", "x-hamt-collide-3", "v0-dir-mode", "v0-file-mode-mtime-nsec", "x-tree-w4-16"]
    blocks = []
    for vector in vectors["vectors"]:
        if vector["id"] in chosen:
            data = bytes.fromhex(vector["root_block_hex"])
            seed("node", vector["id"], data)
            blocks.append((b"\x01\x70\x12\x20" + hashlib.sha256(data).digest(), data))
            seed("cid", vector["id"], vector["cid"].encode())
    for vector in vectors["dagpb"]["values"]:
        seed("node", vector["id"], bytes.fromhex(vector["block_hex"]))
    one = car(blocks[:3])
    seed("car", "one", one)
    seed("car", "two", b"\x0a\xa1\x67version\x02" + bytes(16) + struct.pack("<QQQ", 51, len(one), 0) + one)
    identity = [(bytes.fromhex(v["cid_hex"]), bytes.fromhex(v["block_hex"])) for v in vectors["cids"]]
    seed("car", "identity", car(blocks[:1] + identity))
    for vector in vectors["cids"]:
        seed("cid", vector["id"], vector["cid"].encode())
        seed("cid", vector["id"] + "-binary", bytes.fromhex(vector["cid_hex"]))


def envelopes():
    vectors = json.loads((VECTORS / "envelope.json").read_text())
    for vector in vectors["valid"]:
        data = content(vector["envelope"])
        if len(data) <= 4096:
            seed("envelope", vector["id"], data)
            inner = json.loads(data)
            inner = inner.get("manifest", inner.get("index"))
            text = json.dumps(inner, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            seed("document", vector["id"], text.encode())
    reasons = set()
    for vector in vectors["invalid"]:
        data = content(vector["envelope"])
        if vector["reason"] not in reasons and len(data) <= 2048:
            reasons.add(vector["reason"])
            seed("envelope", "refused-" + vector["reason"], data)
    lines = []
    for label, key in sorted(vectors["test_keys"].items()):
        raw = bytes.fromhex(key["public"])
        line = base64.b64encode(raw).decode()
        lines.append(line)
        if label == "k1":
            seed("keys", "line", line.encode())
            spki = bytes.fromhex("302a300506032b6570032100") + raw
            seed("keys", "spki", b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(spki) + b"\n-----END PUBLIC KEY-----\n")
            pkcs8 = bytes.fromhex("302e020100300506032b657004220420" + key["seed"])
            seed("keys", "pkcs8", b"-----BEGIN PRIVATE KEY-----\n" + base64.b64encode(pkcs8) + b"\n-----END PRIVATE KEY-----\n")
    seed("trust", "rules", f"""# who may publish
[[rule]]
pattern = "acme/*"
keys = ["{lines[0]}", "{lines[1]}"]
threshold = 2
max_age = "30d"
links = "any"

[[rule]]
pattern = "*"
keys = [
    "{lines[2]}", # a comment
]

[[revoked]]
key = "{lines[3] if len(lines) > 3 else lines[0]}"
reason = "lost"

[[blocked]]
package = "acme/tool@1.2.3"
""".encode())
    seed("trust", "inline", f'rule = [{{ pattern = "a", keys = ["{lines[0]}"] }}]\n'.encode())
    seed("trust", "empty", b"# nobody\n")
    for index, name in enumerate(vectors["names"]["valid"][:6]):
        seed("names", f"name-{index}", name.encode())
    versions = vectors["versions"]["valid"]
    for index in range(0, len(versions) - 1, 2):
        seed("names", f"version-{index}", (versions[index] + "\n" + versions[index + 1]).encode())
    for name, text in {"package": "scope/pkg@1.0.0-alpha.1", "pattern": "scope/*", "time": "2026-01-02T03:04:05Z", "duration": "30d",
                       "seconds": "90s", "key": hashlib.sha256(b"key").hexdigest()}.items():
        seed("names", name, text.encode())


def catalogs():
    vectors = json.loads((VECTORS / "catalog.json").read_text())
    for tree in vectors["trees"]:
        data = tree["expect"]["catalog"].get("hex")
        if data and len(data) <= 4096:
            seed("catalog", tree["id"], bytes.fromhex(data))
    reasons = set()
    for vector in vectors["invalid"] + [{"reason": "id", **vector} for vector in vectors["ids_not_covered_by_valid"]]:
        data = content(vector["catalog"])
        if vector["reason"] not in reasons and len(data) <= 2048:
            reasons.add(vector["reason"])
            seed("catalog", "refused-" + vector["reason"], data)


def others():
    seed("config", "some", b"""[store]
quota = "20GiB"
verify = "always"

[fetch]
deadline = "30s"
down = "1MiB"

[sources]
gateways = ["http://127.0.0.1:8420"]
http = []

[net]
allow = ["127.0.0.1"]

[net.auth]
"127.0.0.1:8420" = "bearer-file:/run/token"

[publish]
names = ["acme/*"]
settle = "60s"
""")
    for name, place in {"index": "packages/acme/tool/index.json", "manifest": "packages/hello/1.0.0/manifest.json",
                        "pem": "keys/" + hashlib.sha256(b"key").hexdigest() + ".pem"}.items():
        seed("names", "place-" + name, place.encode())
    seed("listing", "two", b'{"format": "manifs-packages/1", "packages": {"acme/tool": ["1.0.0", "1.1.0-rc.1"], "hello": []}}')
    seed("listing", "later", b'{"format": "manifs-packages/1", "packages": {"No Name": ["1", "x"], "hello": ["1.0.0", "1.0.0"]}, "more": null}')
    digest = hashlib.sha256(b"").digest()
    for name, path in {"plain": b"a b/c", "newline": b"a\nb", "backslash": b"a\\n\r", "stdin": b"-"}.items():
        seed("sums", name, digest + path)


unixfs()
envelopes()
catalogs()
others()
