"""Reads what `slowhttptest` says, and asks the edge beside it.

    slow.py NAME PORT PID SECONDS -- slowhttptest ARGUMENTS

PASS: every connection was closed within SECONDS, a second client was served all the while, and the
edge has grown by less than 32 MiB.
"""

import re
import subprocess
import sys
import time
import urllib.request


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def main():
    name, port, pid, seconds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    before = most = memory(pid)
    with open(f"{name}.log", "w") as log:
        process = subprocess.Popen(sys.argv[6:], stdout=log, stderr=subprocess.STDOUT)
    errors, took, until = 0, [], time.monotonic() + seconds + 10
    while process.poll() is None and time.monotonic() < until:
        began = time.monotonic()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/whoami", timeout=5).read()
        except OSError:
            errors += 1
        took.append(time.monotonic() - began)
        most = max(most, memory(pid))
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    process.wait()
    with open(f"{name}.log") as log:
        said = re.sub(r"\x1b\[[0-9;]*m", "", log.read())
    last = {key: int(value) for key, value in re.findall(r"(\w+):\s+(\d+)", said)}
    took = sorted(took)
    p99, grown = took[len(took) * 99 // 100], most - before
    faults = []
    if "No open connections left" not in said:
        faults.append("not all were closed")
    if errors:
        faults.append(f"{errors} errors of the second client")
    if grown >= 32 * 1024 * 1024:
        faults.append("memory")
    verdict = "FAIL " + ", ".join(faults) if faults else "PASS"
    print(
        f"slow {name}: {verdict} (connected {last.get('connected')}, "
        f"second client's p99 {p99 * 1000:.1f} ms, grown by {grown / 1024 / 1024:.1f} MiB)"
    )
    sys.exit(1 if faults else 0)


main()
