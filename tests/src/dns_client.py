# A DNS client in the hands of a test: one query, made by hand, so that every
# bit of the answer can be looked at. Standard library only.
import socket
import struct

A, NS, SOA, PTR, TXT, AAAA, SVCB, HTTPS = 1, 2, 6, 12, 16, 28, 64, 65
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5


def encode(name):
    labels = [label.encode() for label in name.rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def message(name, kind, number=4711, edns=0):
    flags, additional = 0x0100, b""
    if edns:
        additional = b"\0" + struct.pack("!HHIH", 41, edns, 0, 0)
    return (
        struct.pack("!6H", number, flags, 1, 0, 0, 1 if edns else 0)
        + encode(name)
        + struct.pack("!HH", kind, 1)
        + additional
    )


def skip(data, at):
    while data[at]:
        if data[at] & 0xC0:
            return at + 2
        at += data[at] + 1
    return at + 1


class Answer:
    def __init__(self, data):
        number, flags, questions, answers, authority, additional = struct.unpack(
            "!6H", data[:12]
        )
        self.number, self.rcode = number, flags & 15
        self.truncated, self.recursion = bool(flags & 0x200), bool(flags & 0x80)
        self.size, self.answers, self.soa, self.edns = len(data), [], False, None
        self.ttls = []
        at = 12
        for _ in range(questions):
            at = skip(data, at) + 4
        for section, count in (("an", answers), ("ns", authority), ("ar", additional)):
            for _ in range(count):
                at = skip(data, at)
                kind, klass, ttl, length = struct.unpack("!HHIH", data[at : at + 10])
                at += 10
                value = data[at : at + length]
                at += length
                if kind == 41:
                    self.edns = klass
                elif section == "ns":
                    self.soa |= kind == SOA
                elif section == "an":
                    if kind == A:
                        value = socket.inet_ntop(socket.AF_INET, value)
                    elif kind == AAAA:
                        value = socket.inet_ntop(socket.AF_INET6, value)
                    self.answers.append((kind, value))
                    self.ttls.append(ttl)

    def addresses(self):
        return [value for kind, value in self.answers if kind in (A, AAAA)]


def family(server):
    return socket.AF_INET6 if ":" in server else socket.AF_INET


def query(server, name, kind=A, tcp=False, connected=False, edns=0, timeout=5, port=53):
    """Asks one server; checks that the answer seems to come from that server."""
    wanted = message(name, kind, edns=edns)
    if tcp:
        with socket.create_connection((server, port), timeout) as s:
            assert s.getpeername()[:2] == (server, port), s.getpeername()
            s.sendall(struct.pack("!H", len(wanted)) + wanted)
            data = b""
            while len(data) < 2 or len(data) < 2 + struct.unpack("!H", data[:2])[0]:
                part = s.recv(65536)
                assert part, "the connection ended in the middle of an answer"
                data += part
            return Answer(data[2:])
    with socket.socket(family(server), socket.SOCK_DGRAM) as s:
        s.settimeout(timeout)
        if connected:
            s.connect((server, port))
            assert s.getpeername()[:2] == (server, port), s.getpeername()
            s.send(wanted)
            return Answer(s.recv(65536))
        s.sendto(wanted, (server, port))
        data, peer = s.recvfrom(65536)
        assert peer[:2] == (server, port), peer
        return Answer(data)
