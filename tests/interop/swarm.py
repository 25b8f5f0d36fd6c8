"""One libtorrent session on loopback, told what to do by a JSON object on the command line.

    {"torrent": PATH or "magnet": URI, "directory": PATH, "listen": "127.0.0.1:0", "peers": ["127.0.0.1:1"]}

with "dht": ["127.0.0.1:2"] also in a hash table that begins at these nodes, or at itself when there are none;

or, to make a torrent: {"make": PATH, "directory": TREE, "trackers": [URL]}, which prints {"info_hash": HEX}.

Prints a JSON object per line: {"event": "listening", "port": N}, then {"event": "progress", ...} each tenth of a second
while something is missing, then {"event": "complete", "seconds": S, "bytes": B}; goes on seeding, says {"event":
"uploaded", "bytes": B} for each line of its standard input, and ends when that is closed, so that it never outlives a
test.
"""

import json
import os
import sys
import threading
import time

import libtorrent as lt


def say(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)


def answer(torrent):
    for _ in sys.stdin:
        say("uploaded", bytes=torrent.status().total_payload_upload)
    os._exit(0)


def address(text):
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def make(job):
    files = lt.file_storage()
    lt.add_files(files, job["directory"])
    maker = lt.create_torrent(files, 0, lt.create_torrent.v1_only)
    for tracker in job.get("trackers", []):
        maker.add_tracker(tracker)
    lt.set_piece_hashes(maker, os.path.dirname(job["directory"]))
    encoded = lt.bencode(maker.generate())
    with open(job["make"], "wb") as file:
        file.write(encoded)
    print(json.dumps({"info_hash": str(lt.torrent_info(lt.bdecode(encoded)).info_hash())}))


def main():
    job = json.loads(sys.argv[1])
    if "make" in job:
        make(job)
        return
    session = lt.session({
        "listen_interfaces": job.get("listen", "127.0.0.1:0"),
        "enable_dht": "dht" in job,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
        "allow_multiple_connections_per_ip": True,
        "close_redundant_connections": job.get("close_redundant", False),
        "connections_limit": 500,
        "alert_mask": lt.alert.category_t.error_notification | lt.alert.category_t.status_notification
        | lt.alert.category_t.tracker_notification
        | (lt.alert.category_t.dht_notification if "dht" in job else 0),
        # Announces and connects at once; a test has no half hours.
        "min_announce_interval": 1,
        "min_reconnect_time": 1,
        # Several nodes of one address, in a table of two.
        "dht_bootstrap_nodes": ",".join(job.get("dht", [])),
        "dht_restrict_routing_ips": False,
        "dht_restrict_search_ips": False,
        **job.get("settings", {}),
    })
    if "magnet" in job:
        parameters = lt.parse_magnet_uri(job["magnet"])
    else:
        parameters = lt.add_torrent_params()
        parameters.ti = lt.torrent_info(job["torrent"])
        if job.get("no_trackers"):
            parameters.trackers = []
    parameters.save_path = job["directory"]
    parameters.flags &= ~lt.torrent_flags.auto_managed
    parameters.flags &= ~lt.torrent_flags.paused
    torrent = session.add_torrent(parameters)
    threading.Thread(target=answer, args=[torrent], daemon=True).start()
    deadline = time.monotonic() + 10
    while session.listen_port() == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    say("listening", port=session.listen_port())
    start = time.monotonic()
    for peer in job.get("peers", []):
        torrent.connect_peer(address(peer))
    while True:
        for alert in session.pop_alerts():
            print(alert, file=sys.stderr, flush=True)
        status = torrent.status()
        if status.errc.value():
            say("error", message=status.errc.message())
            sys.exit(1)
        if status.is_seeding:
            break
        if "dht" in job:
            torrent.force_dht_announce()
        say("progress", state=str(status.state), done=status.total_wanted_done, total=status.total_wanted,
            peers=status.num_peers)
        time.sleep(0.1)
    say("complete", seconds=time.monotonic() - start, bytes=torrent.status().total_wanted_done)
    while True:
        time.sleep(1)
        if "dht" in job:
            torrent.force_dht_announce()
        for alert in session.pop_alerts():
            print(alert, file=sys.stderr, flush=True)


main()
