"""HTTP/2 floods against an edge, with a second client beside them.

    floods.py PORT PID [NAME...]

PORT is the edge's, PID its process. Each flood runs for SECONDS on CONNECTIONS connections, again and
again where it is cut. A second client asks all the while; its latency is compared with its own when
nothing else runs. PASS: no error, p99 below P99_MAX or three times its own, and the edge has grown
by less than GROWTH_MAX.
"""

import socket
import struct
import sys
import threading
import time

HOST = "127.0.0.1"
SECONDS = 5
CONNECTIONS = 4
GROWTH_MAX = 32 * 1024 * 1024
# Floods and the second client share the machine with the edge.
P99_MAX = 0.1

HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def text(index, value):
    return bytes([index, len(value)]) + value


REQUEST = b"\x82\x86" + text(1, HOST.encode()) + text(4, b"/whoami")


def get(stream, block=REQUEST):
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, block)


def batches(one, size=50):
    """What `one` makes of each of the client's streams, some at a time."""
    stream = 1
    while True:
        yield b"".join(one(stream + 2 * n) for n in range(size))
        stream += 2 * size


def rapid_reset():
    return batches(lambda s: get(s) + frame(RST_STREAM, 0, s, struct.pack(">I", 8)))


def made_you_reset():
    return batches(lambda s: get(s) + frame(WINDOW_UPDATE, 0, s, struct.pack(">I", 0)))


def forever(first, more):
    yield first
    while True:
        yield more


def continuation():
    return forever(frame(HEADERS, END_STREAM, 1, REQUEST), frame(CONTINUATION, 0, 1, b"x" * 16000))


def empty_continuation():
    return forever(frame(HEADERS, END_STREAM, 1, REQUEST), frame(CONTINUATION, 0, 1) * 1000)


def hpack_bomb():
    value = b"x" * 3900
    rest = len(value) - 127
    keep = b"\x40\x01x\x7f" + bytes([0x80 | rest & 127, rest >> 7]) + value
    yield get(1, REQUEST + keep)
    yield from batches(lambda s: get(s + 2, REQUEST + bytes([0x80 | 62]) * 16000), 1)


def ping():
    return forever(b"", frame(PING, 0, 0, b"\7" * 8) * 1000)


def settings():
    return forever(b"", frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)) * 1000)


# Whether the edge must close such a connection by itself.
FLOODS = {
    "rapid_reset": (rapid_reset, True),
    "made_you_reset": (made_you_reset, True),
    "continuation": (continuation, True),
    "empty_continuation": (empty_continuation, True),
    "hpack_bomb": (hpack_bomb, False),
    "ping": (ping, False),
    "settings": (settings, False),
}


def flood(port, frames, reads, until, cuts):
    while time.monotonic() < until:
        try:
            with socket.create_connection((HOST, port), timeout=2) as client:
                client.sendall(PREFACE + frame(SETTINGS, 0, 0))
                for piece in frames():
                    if until < time.monotonic():
                        return
                    client.sendall(piece)
                    if reads:
                        client.setblocking(False)
                        try:
                            if client.recv(1 << 20) == b"":
                                raise ConnectionResetError
                        except BlockingIOError:
                            pass
                        client.settimeout(2)
        except TimeoutError:
            # It takes nothing: bounded.
            pass
        except OSError:
            cuts.append(1)


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


class Second:
    """A client that asks every 10 ms by one connection."""

    def __init__(self, port):
        self.port, self.took, self.errors, self.stops = port, [], [], False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        ask = f"GET /whoami HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        with socket.create_connection((HOST, self.port), timeout=5) as client:
            while not self.stops:
                began = time.monotonic()
                try:
                    client.sendall(ask)
                    answer = b""
                    while not answer.endswith(b"}"):
                        more = client.recv(65536)
                        if not more:
                            raise ConnectionResetError("closed")
                        answer += more
                    if not answer.startswith(b"HTTP/1.1 200 "):
                        raise ValueError(answer[:40])
                except (OSError, ValueError) as error:
                    self.errors.append(repr(error))
                    return
                self.took.append(time.monotonic() - began)
                time.sleep(0.01)

    def stop(self):
        self.stops = True
        self.thread.join()
        took = sorted(self.took) or [float("inf")]
        return took[len(took) * 99 // 100 if len(took) > 1 else 0]


def run(port, pid, name, alone):
    frames, must_cut = FLOODS[name]
    before, second, cuts = memory(pid), Second(port), []
    until = time.monotonic() + SECONDS
    # One half takes what comes, the other does not.
    arguments = [(port, frames, n % 2 == 0, until, cuts) for n in range(CONNECTIONS)]
    threads = [threading.Thread(target=flood, args=each) for each in arguments]
    most = before
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, memory(pid))
        time.sleep(0.05)
    p99, grown = second.stop(), most - before
    faults = list(second.errors)
    if p99 > max(P99_MAX, 3 * alone):
        faults.append("p99")
    if grown >= GROWTH_MAX:
        faults.append("memory")
    if must_cut and not cuts:
        faults.append("never cut")
    verdict = "FAIL " + ", ".join(faults) if faults else "PASS"
    print(
        f"floods {name}: {verdict} (cut {len(cuts)} times, second client's p99 {p99 * 1000:.1f} ms, "
        f"alone {alone * 1000:.1f} ms, grown by {grown / 1024 / 1024:.1f} MiB)",
        flush=True,
    )
    return not faults


def main():
    port, pid, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or FLOODS
    second = Second(port)
    time.sleep(3)
    alone = second.stop()
    if second.errors:
        sys.exit(f"floods: FAIL the second client alone: {second.errors}")
    results = [run(port, pid, name, alone) for name in names]
    sys.exit(0 if all(results) else 1)


main()
