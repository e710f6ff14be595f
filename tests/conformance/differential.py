"""Random requests by HTTP/1.1 and HTTP/2 through nginx, HAProxy and Dormouse: does the instance see
the same?

    differential.py run COUNT SEED DORMOUSE FOLDER    the comparison; ends with 1 where a difference
                                                      has no explanation below
    differential.py origin HOST:PORT FILE             an instance that writes what it sees to FILE

The same request goes through each proxy to an instance of its own. What the instance behind Dormouse
sees is compared with what the one behind each peer sees: method, target, headers, body, trailers,
and the status that the client gets. EXPLAINED names each difference that may be, and why.
"""

import json
import os
import random
import socket
import socketserver
import subprocess
import sys
import time

import importlib

HOST = "session.test"
PATIENCE = 20

# ---- The instance -----------------------------------------------------------------------------


def read_head(file):
    line = file.readline()
    if not line:
        return None
    headers = []
    while (field := file.readline()) not in (b"\r\n", b"\n", b""):
        name, _, value = field.rstrip(b"\r\n").partition(b":")
        headers.append((name.decode("latin-1"), value.strip(b" \t").decode("latin-1")))
    return line.rstrip(b"\r\n").decode("latin-1"), headers


def read_chunked(file):
    body = b""
    while size := int(file.readline().split(b";")[0], 16):
        body += file.read(size)
        assert file.readline() == b"\r\n"
    trailers = []
    while (field := file.readline()) not in (b"\r\n", b""):
        trailers.append(field.rstrip(b"\r\n").decode("latin-1"))
    return body, trailers


class Origin(socketserver.StreamRequestHandler):
    def handle(self):
        while head := read_head(self.rfile):
            line, headers = head
            lower = [(name.lower(), value) for name, value in headers]
            get = dict(lower).get
            body, trailers, framing = b"", [], "none"
            if get("expect", "").lower() == "100-continue":
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if "chunked" in get("transfer-encoding", ""):
                framing = "chunked"
                body, trailers = read_chunked(self.rfile)
            elif get("content-length") is not None:
                framing = "length"
                body = self.rfile.read(int(get("content-length")))
            seen = dict(line=line, headers=lower, body=body.decode("latin-1"), trailers=trailers, framing=framing)
            with open(self.server.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(seen) + "\n")
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Answer: 1\r\n\r\n"
            self.wfile.write(answer + (b"" if line.startswith("HEAD ") else b"ok"))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


def origin(address, file):
    host, port = address.rsplit(":", 1)
    server = Server((host, int(port)), Origin)
    server.file = file
    server.serve_forever()


# ---- The requests -----------------------------------------------------------------------------

TOKEN = "abcdefghijklmnopqrstuvwxyz0123456789!#$&'*+.^`|~-"
# What RFC 3986 wants encoded, and Dormouse refuses.
ENCODED = "<>`\""
PATH = "abcXYZ019-._~!$&'()*+,;=:@/%<>\"`|^{}[]\\"
VALUE = "abc XYZ 019 \t;,=\"'/()<>@:\\[]?{}%\u00e9\u00ff"


def text(rng, letters, most, least=0):
    return "".join(rng.choice(letters) for _ in range(rng.randint(least, most)))


def target(rng):
    path = "/" + text(rng, PATH, 12).replace("%", "%" + rng.choice(["20", "2F", "c3", "00"]))
    if rng.random() < 0.5:
        path += "?" + text(rng, PATH + "?", 12).replace("%", "%41")
    return path if rng.random() < 0.1 else "".join(byte for byte in path if byte not in ENCODED + "\\")


def cookies(rng):
    return [f"c{i}={text(rng, TOKEN, 8)}" for i in range(rng.choice([0, 0, 1, 2, 5]))]


def request(rng, number):
    """A request, free of a protocol."""
    method = rng.choice(["GET", "GET", "HEAD", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"])
    headers = [("differential-number", str(number))]
    for _ in range(rng.randint(0, 6)):
        headers.append(("x-" + text(rng, TOKEN, 8, 1), text(rng, VALUE, 20).strip(" \t")))
    for name, value, chance in [
        ("accept", "text/html, */*;q=0.1", 0.5), ("accept-encoding", "gzip, br", 0.3),
        ("content-type", "application/grpc-web+proto", 0.1), ("te", "trailers", 0.1),
        ("x_under", "score", 0.1), ("authorization", "Bearer x.y.z", 0.2), ("range", "bytes=0-9", 0.1),
        ("x-forwarded-for", "198.51.100.7", 0.1), ("forwarded", "for=198.51.100.7", 0.1),
        ("user-agent", "differential/1", 0.7), ("accept", "application/json", 0.1),
    ]:
        if rng.random() < chance:
            headers.append((name, value))
    body = None
    if method not in ("GET", "HEAD", "OPTIONS") and rng.random() < 0.8 or rng.random() < 0.02:
        body = text(rng, VALUE, rng.choice([0, 5, 200, 20000]))
    pieces = [] if body is None else cut(rng, body.encode("latin-1"))
    return dict(method=method, target=target(rng), headers=headers, cookies=cookies(rng), body=body,
                pieces=pieces, length=rng.random() < 0.5, empty_end=rng.random() < 0.5,
                expect=body and rng.random() < 0.05, hop=rng.random() < 0.1,
                absolute=rng.random() < 0.05, old=rng.random() < 0.03,
                host=rng.choice([HOST] * 8 + [HOST.upper(), HOST + ":80"]))


def cut(rng, body):
    pieces = []
    while body:
        size = rng.randint(1, max(1, len(body)))
        pieces.append(body[:size])
        body = body[size:]
        if rng.random() < 0.2:
            pieces.append(b"")
    return pieces


# ---- The clients ------------------------------------------------------------------------------


class Http1:
    name = "HTTP/1.1"

    def __init__(self, port):
        self.port, self.socket = port, None

    def ask(self, r):
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
            self.file = self.socket.makefile("rb")
        status, closes = self.exchange(r)
        if closes:
            self.socket.close()
            self.socket = None
        return status

    def exchange(self, r):
        version = "1.0" if r["old"] and r["body"] is None else "1.1"
        where = f"http://{r['host']}{r['target']}" if r["absolute"] else r["target"]
        lines = [f"{r['method']} {where} HTTP/{version}", f"Host: {r['host']}"]
        lines += [f"{name}: {value}" for name, value in r["headers"]]
        if r["cookies"]:
            lines.append("Cookie: " + "; ".join(r["cookies"]))
        if r["hop"]:
            lines += ["Connection: x-hop", "X-Hop: 1", "Keep-Alive: timeout=5"]
        if r["expect"] and version == "1.1":
            lines.append("Expect: 100-continue")
        body = b""
        if r["body"] is not None:
            whole = b"".join(r["pieces"])
            if r["length"]:
                lines.append(f"Content-Length: {len(whole)}")
                body = whole
            else:
                lines.append("Transfer-Encoding: chunked")
                chunks = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in r["pieces"] if piece]
                body = b"".join(chunks) + b"0\r\n\r\n"
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
        while True:
            head = read_head(self.file)
            if head is None:
                return "closed", True
            status = int(head[0].split()[1])
            if status >= 200:
                break
        get = {name.lower(): value for name, value in head[1]}.get
        if r["method"] != "HEAD" and status not in (204, 304):
            if get("transfer-encoding"):
                read_chunked(self.file)
            elif get("content-length") is not None:
                self.file.read(int(get("content-length")))
            else:
                self.file.read()
                return status, True
        kept = get("connection", "").lower() == "keep-alive" if version == "1.0" else True
        return status, get("connection", "").lower() == "close" or not kept


class Http2:
    name = "HTTP/2"

    def __init__(self, port):
        self.port, self.socket, self.asked = port, None, 0
        self.h2 = importlib.import_module("h2.connection")
        self.events = importlib.import_module("h2.events")
        self.config = importlib.import_module("h2.config").H2Configuration(
            header_encoding="latin-1", validate_outbound_headers=False, normalize_outbound_headers=False)

    def ask(self, r):
        # A server ends a connection after so many requests or resets, with a GOAWAY in between.
        self.asked = (self.asked + 1) % 50
        if self.socket is not None and self.asked == 0:
            self.close()
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
            self.peer = self.h2.H2Connection(self.config)
            self.peer.initiate_connection()
            self.socket.sendall(self.peer.data_to_send())
            self.pending = []
            self.wait(lambda event: isinstance(event, self.events.RemoteSettingsChanged))
        try:
            return self.exchange(r)
        except (OSError, EOFError):
            self.close()
            return "closed"

    def close(self):
        self.socket.close()
        self.socket = None

    def exchange(self, r):
        stream = self.peer.get_next_available_stream_id()
        headers = [(":method", r["method"]), (":scheme", "http"), (":authority", r["host"]), (":path", r["target"])]
        headers += r["headers"] + [("cookie", cookie) for cookie in r["cookies"]]
        if r["body"] is not None and r["length"]:
            headers.append(("content-length", str(len(b"".join(r["pieces"])))))
        ends = r["body"] is None
        self.peer.send_headers(stream, headers, end_stream=ends)
        self.socket.sendall(self.peer.data_to_send())
        over = lambda event: getattr(event, "stream_id", None) == stream and isinstance(
            event, (self.events.StreamEnded, self.events.StreamReset))
        pieces = list(r["pieces"]) + ([b""] if r["empty_end"] or not r["pieces"] else [])
        for number, piece in enumerate([] if ends else pieces):
            last = number + 1 == len(pieces)
            while piece and self.peer.local_flow_control_window(stream) < len(piece):
                self.read()
            for start in range(0, len(piece) or 1, 16384):
                part = piece[start:start + 16384]
                self.peer.send_data(stream, part, end_stream=last and start + 16384 >= len(piece))
            self.socket.sendall(self.peer.data_to_send())
        status = None
        while True:
            event = self.wait(lambda event: getattr(event, "stream_id", None) == stream)
            if isinstance(event, self.events.ResponseReceived):
                status = int(dict(event.headers)[":status"])
            if isinstance(event, self.events.StreamReset):
                return status or f"reset {event.error_code}"
            if over(event):
                return status

    def wait(self, wanted):
        while True:
            while self.pending:
                event = self.pending.pop(0)
                if wanted(event):
                    return event
            self.read()

    def read(self):
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        events = self.peer.receive_data(data)
        for event in events:
            if isinstance(event, self.events.DataReceived):
                self.peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, self.events.ConnectionTerminated):
                raise EOFError
        self.pending += events
        self.socket.sendall(self.peer.data_to_send())


# ---- The proxies ------------------------------------------------------------------------------


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)


def wait_for(port):
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < end, f"nothing listens on {port}"
            time.sleep(0.02)


class Proxy:
    def __init__(self, name, folder):
        self.name, self.folder, self.children = name, os.path.join(folder, name), []
        self.file = os.path.join(self.folder, "seen.jsonl")
        self.ports = {"HTTP/1.1": free_port(), "HTTP/2": free_port()}
        os.makedirs(self.folder, exist_ok=True)

    def spawn(self, *command):
        log = open(os.path.join(self.folder, "log"), "ab")
        self.children.append(subprocess.Popen(command, stdout=log, stderr=log))

    def origin(self):
        port = free_port()
        self.spawn(sys.executable, __file__, "origin", f"127.0.0.1:{port}", self.file)
        wait_for(port)
        return port

    def ready(self):
        for port in self.ports.values():
            wait_for(port)
        return self

    def end(self):
        for child in self.children:
            child.terminate()
            child.wait()

    def seen(self):
        """By number, how the instance saw each request; the list has more than one where it came twice."""
        found = {}
        with open(self.file, encoding="utf-8") as file:
            for line in file:
                seen = json.loads(line)
                found.setdefault(int(dict(seen["headers"]).get("differential-number", -1)), []).append(seen)
        return found


def nginx(folder):
    proxy = Proxy("nginx", folder)
    write(f"{proxy.folder}/nginx.conf", f"""
daemon off; pid {proxy.folder}/pid; error_log stderr; worker_processes 1;
events {{ }}
http {{
  access_log off; underscores_in_headers on; ignore_invalid_headers off; merge_slashes off;
  client_body_temp_path {proxy.folder}/b; proxy_temp_path {proxy.folder}/p; fastcgi_temp_path {proxy.folder}/f;
  uwsgi_temp_path {proxy.folder}/u; scgi_temp_path {proxy.folder}/s;
  upstream origin {{ server 127.0.0.1:{proxy.origin()}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{proxy.ports["HTTP/1.1"]}; listen 127.0.0.1:{proxy.ports["HTTP/2"]} http2;
    location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Host $host;
      proxy_set_header Connection ""; proxy_request_buffering off; }}
  }}
}}
""")
    proxy.spawn("nginx", "-c", f"{proxy.folder}/nginx.conf")
    return proxy.ready()


def haproxy(folder):
    proxy = Proxy("haproxy", folder)
    write(f"{proxy.folder}/haproxy.cfg", f"""
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 5s
frontend f
  bind 127.0.0.1:{proxy.ports["HTTP/1.1"]}
  bind 127.0.0.1:{proxy.ports["HTTP/2"]} proto h2
  default_backend b
backend b
  server s 127.0.0.1:{proxy.origin()}
""")
    proxy.spawn("haproxy", "-db", "-f", f"{proxy.folder}/haproxy.cfg")
    return proxy.ready()


def dormouse(program, folder):
    proxy = Proxy("dormouse", folder)
    both = proxy.ports["HTTP/1.1"]
    proxy.ports["HTTP/2"] = both
    write(f"{proxy.folder}/dormouse.toml", f'[listen]\nhttp = ["127.0.0.1:{both}"]\nadmin = "unix:{proxy.folder}/admin"\n'
          '[engines.local]\nkind = "process"\n')
    command = json.dumps([sys.executable, os.path.abspath(__file__), "origin", "{address}", proxy.file])
    write(f"{proxy.folder}/routes/session.toml", f'host = "{HOST}"\nengine = "local"\n[instance]\ncommand = {command}\n')
    proxy.spawn(program, "run", "--config", f"{proxy.folder}/dormouse.toml")
    return proxy.ready()


# ---- The comparison ---------------------------------------------------------------------------

EXPLAINED = {
    "target": "A target with bytes that RFC 3986 wants encoded (`<`, `>`, `` ` `` and `\"`). Dormouse refuses it in "
              "words, and by HTTP/2 resets the stream: docs/security.md.",
    "absolute": "HAProxy passes a target that is a whole URI on as it came; RFC 9112 3.2.2 wants the path from a proxy "
                "that is the gateway, and nginx and Dormouse write that.",
    "body of GET": "Dormouse refuses a body of GET, HEAD or OPTIONS by default: docs/security.md.",
    "framing": "Another framing of the same body: a length where the whole body was known, or chunks.",
    "empty body": "A body of no bytes: its framing may be left out, or written as a length of 0.",
    "nul": "nginx refuses %00; it is for the instance to judge.",
    "version": "HAProxy keeps the version of a request of HTTP/1.0; RFC 9112 2.3 wants the sender's own.",
}
# Between two hops, or told by Dormouse of the client: not compared. `host` and `cookie` are, below.
FORWARDING = ("x-forwarded-", "forwarded", "x-request-id", "x-real-ip", "via")
HOP = {"connection", "keep-alive", "te", "transfer-encoding", "content-length", "expect", "x-hop", "host", "cookie"}


def plain(seen):
    """What must be the same: fields by name, in their order."""
    fields = {}
    for name, value in seen["headers"]:
        if name in HOP or name.startswith(FORWARDING) or "_" in name:
            continue
        fields.setdefault(name, []).append(value)
    return fields


def crumbs(seen):
    joined = "; ".join(value for name, value in seen["headers"] if name == "cookie")
    return joined, sum(name == "cookie" for name, _ in seen["headers"])


def differences(r, mine, theirs, statuses):
    """Pairs of a name in EXPLAINED, or `None` for what has no explanation, and what it was."""
    (my_status, their_status) = statuses
    if my_status != their_status:
        yield explain_status(r, my_status, their_status), f"{my_status} against {their_status}"
    if mine is None or theirs is None:
        return
    if mine["line"] != theirs["line"]:
        yield explain_line(mine["line"], theirs["line"]), f"{mine['line']} against {theirs['line']}"
    if mine["body"] != theirs["body"]:
        yield None, "another body"
    if mine["trailers"] != theirs["trailers"]:
        yield None, f"trailers {mine['trailers']} against {theirs['trailers']}"
    if mine["framing"] != theirs["framing"]:
        yield ("empty body" if not mine["body"] else "framing"), f"{mine['framing']} against {theirs['framing']}"
    if plain(mine) != plain(theirs):
        a, b = plain(mine), plain(theirs)
        odd = {name: (a.get(name), b.get(name)) for name in {*a, *b} if a.get(name) != b.get(name)}
        yield None, str(odd)
    (my_cookies, my_lines), (their_cookies, their_lines) = crumbs(mine), crumbs(theirs)
    if my_cookies != their_cookies or my_lines > 1:
        yield None, f"cookies {my_cookies!r} ({my_lines}) against {their_cookies!r} ({their_lines})"
    if any(name == "x-hop" for name, _ in mine["headers"]):
        yield None, "a field that Connection names has passed"
    if sum(name == "host" for name, _ in mine["headers"]) != 1:
        yield None, "not one Host"


def explain_status(r, mine, theirs):
    must_be_encoded = set(ENCODED) & set(r["target"])
    if must_be_encoded and (mine == 400 or str(mine).startswith("reset") or mine == "closed"):
        return "target"
    if mine == 400 and r["body"] is not None and r["method"] in ("GET", "HEAD", "OPTIONS"):
        return "body of GET"
    if theirs == 400 and mine == 200 and "%00" in r["target"]:
        return "nul"
    return None


def explain_line(mine, theirs):
    if theirs.endswith(" HTTP/1.0") and mine.endswith(" HTTP/1.1"):
        return "version"
    method, where, _ = theirs.split(" ")
    path = "/" + where.split("/", 3)[3] if where.startswith("http://") else where
    return "absolute" if path != where and mine == f"{method} {path} HTTP/1.1" else None


def run(count, seed, program, folder):
    rng = random.Random(seed)
    requests = [request(rng, number) for number in range(count)]
    proxies = [dormouse(program, folder), nginx(folder), haproxy(folder)]
    try:
        return compare(requests, proxies)
    finally:
        for proxy in proxies:
            proxy.end()


def compare(requests, proxies):
    totals, unexplained = {}, 0
    for client in (Http1, Http2):
        statuses = {}
        for proxy in proxies:
            asker = client(proxy.ports[client.name])
            offset = 0 if client is Http1 else len(requests)
            statuses[proxy.name] = []
            for r in requests:
                headers = [("differential-number", str(int(r["headers"][0][1]) + offset)), *r["headers"][1:]]
                statuses[proxy.name].append(asker.ask({**r, "headers": headers}))
        seen = {proxy.name: proxy.seen() for proxy in proxies}
        for number, r in enumerate(requests):
            at = number + offset
            mine = seen["dormouse"].get(at, [])
            if len(mine) > 1:
                unexplained += 1
                print(f"{client.name} {number}: came {len(mine)} times")
            for peer in ("nginx", "haproxy"):
                theirs = seen[peer].get(at, [])
                pair = (mine[0] if mine else None, theirs[0] if theirs else None)
                both = (statuses["dormouse"][number], statuses[peer][number])
                for why, what in differences(r, *pair, both):
                    totals[(client.name, peer, why)] = totals.get((client.name, peer, why), 0) + 1
                    if why is None:
                        unexplained += 1
                        if unexplained <= 40:
                            print(f"{client.name} {number} {r['method']} {r['target']!r} against {peer}: {what}")
    for (protocol, peer, why), times in sorted(totals.items(), key=str):
        print(f"{protocol} against {peer}: {times} × {why or 'NOT EXPLAINED'}")
    print(f"{len(requests)} requests, {unexplained} differences without an explanation")
    return 1 if unexplained else 0


if __name__ == "__main__":
    if sys.argv[1] == "origin":
        origin(*sys.argv[2:])
    else:
        sys.exit(run(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]))
