"""Reads what `slowhttptest` says, and asks the edge beside it.

    slow.py NAME PORT PID SECONDS KIB -- slowhttptest ARGUMENTS

PASS: 400 connections were open at once and none is within SECONDS, a second client was served all
the while, and the edge has grown by less than KIB for each. Open is what the kernel keeps on the
edge's side: `slowhttptest` itself takes minutes to read what was sent before its connection ended.
"""

import subprocess
import sys
import time
import urllib.request


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


CONNECTIONS = 400
TIME_WAIT, LISTEN = "06", "0A"
# The second client's, and the one by which slowhttptest looks for itself.
OTHERS = 3


def kept(port):
    """Connections at this port, and those that the edge has closed and the kernel has not."""
    with open("/proc/net/tcp") as connections:
        fields = [line.split() for line in list(connections)[1:]]
    return sum(
        line[1].endswith(f":{port:04X}") and line[3] not in (TIME_WAIT, LISTEN) for line in fields
    )


def main():
    name, port, pid = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    seconds, kib = int(sys.argv[4]), int(sys.argv[5])
    before = most = memory(pid)
    with open(f"{name}.log", "w") as log:
        process = subprocess.Popen(sys.argv[7:], stdout=log, stderr=subprocess.STDOUT)
    start = time.monotonic()
    errors, took, peak, left = 0, [], 0, None
    while process.poll() is None and time.monotonic() < start + seconds:
        began = time.monotonic()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/whoami", timeout=5).read()
        except OSError:
            errors += 1
        took.append(time.monotonic() - began)
        most = max(most, memory(pid))
        peak = max(peak, kept(port))
        if peak >= CONNECTIONS and left is None and kept(port) <= OTHERS:
            left = time.monotonic() - start
        time.sleep(0.05)
    ended = time.monotonic() - start
    if left is None and ended < seconds - 1 and kept(port) <= OTHERS:
        # It had none left, and ended for that.
        left = ended
    if process.poll() is None:
        process.kill()
    process.wait()
    took = sorted(took)
    p99, grown = took[len(took) * 99 // 100], most - before
    faults = []
    if left is None:
        faults.append(f"{kept(port)} are still open")
    if errors:
        faults.append(f"{errors} errors of the second client")
    if grown >= CONNECTIONS * kib * 1024:
        faults.append("memory")
    verdict = "FAIL " + ", ".join(faults) if faults else "PASS"
    print(
        f"slow {name}: {verdict} (all {peak} gone after {left or 0:.0f} s, "
        f"second client's p99 {p99 * 1000:.1f} ms, grown by {grown / 1024 / 1024:.1f} MiB, "
        f"{grown / 1024 / CONNECTIONS:.0f} KiB each)"
    )
    sys.exit(1 if faults else 0)


main()
