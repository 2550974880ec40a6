# A server that takes nothing but TLS and authenticates with
# caching_sha2_password, as "Caching_sha2_password information" in the source
# documentation of MySQL 8 describes it. It answers every query with one row:
# the path that authentication took.
import hashlib, os, socket, ssl, struct, threading

PROTOCOL_41, SSL, SECURE, PLUGIN_AUTH = 1 << 9, 1 << 11, 1 << 15, 1 << 19
FLAGS = 1 | PROTOCOL_41 | SSL | SECURE | PLUGIN_AUTH | (1 << 3)
NONCE = b"abcdefghijklmnopqrst"
PASSWORD = os.environ["PASSWORD"].encode()
known = False

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.environ["CERTIFICATE"], os.environ["KEY"])

class Wire:
    def __init__(self, stream):
        self.stream, self.number = stream, 0
    def exactly(self, count):
        data = b""
        while len(data) < count:
            part = self.stream.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data
    def read(self):
        head = self.exactly(4)
        assert head[3] == self.number, (head[3], self.number)
        self.number = (self.number + 1) % 256
        return self.exactly(int.from_bytes(head[:3], "little"))
    def write(self, payload):
        self.stream.sendall(len(payload).to_bytes(3, "little") + bytes([self.number]) + payload)
        self.number = (self.number + 1) % 256

def scramble(password):
    first = hashlib.sha256(password).digest()
    second = hashlib.sha256(hashlib.sha256(first).digest() + NONCE).digest()
    return bytes(a ^ b for a, b in zip(first, second))

OK = b"\0\0\0\2\0\0\0"
def error(code, text):
    return b"\xff" + struct.pack("<H", code) + b"#28000" + text

def text(value):
    return bytes([len(value)]) + value

def serve(plain):
    global known
    wire = Wire(plain)
    wire.write(b"\x0a8.0.36\0" + struct.pack("<I", 7) + NONCE[:8] + b"\0"
        + struct.pack("<HBHHB", FLAGS & 0xffff, 255, 2, FLAGS >> 16, 21) + b"\0" * 10
        + NONCE[8:] + b"\0caching_sha2_password\0")
    request = wire.read()
    flags = struct.unpack("<I", request[:4])[0]
    if len(request) != 32 or not flags & SSL:
        wire.write(error(3159, b"Connections using insecure transport are prohibited"))
        return
    wire.stream = context.wrap_socket(plain, server_side=True)
    answer = wire.read()
    assert answer[:32] == request, "the request and the answer differ"
    end = answer.index(b"\0", 32)
    proof = answer[end + 2:end + 2 + answer[end + 1]]
    path = b"fast"
    if known and proof == scramble(PASSWORD):
        wire.write(b"\1\3")
    else:
        path = b"full"
        wire.write(b"\1\4")
        # In TLS the password itself is meant; a request for a key, or what
        # was encrypted with one, is none.
        if wire.read() != PASSWORD + b"\0":
            wire.write(error(1045, b"Access denied for user"))
            return
        known = True
    wire.write(OK)
    while True:
        wire.number = 0
        command = wire.read()
        if command[:1] == b"\x01":
            return
        if command[:1] != b"\x03" or not command[1:].upper().startswith(b"SELECT"):
            wire.write(OK)
            continue
        column = text(b"def") + b"\0" * 3 + text(b"path") + b"\0" + b"\x0c" \
            + struct.pack("<HIBHBH", 255, 255, 253, 0, 0, 0)
        wire.write(b"\1")
        wire.write(column)
        wire.write(b"\xfe\0\0\2\0")
        wire.write(text(path))
        wire.write(b"\xfe\0\0\2\0")

def connection(plain):
    try:
        serve(plain)
    except (EOFError, OSError):
        pass
    finally:
        plain.close()

listener = socket.create_server((os.environ["ADDRESS"], 3306))
print("ready", flush=True)
while True:
    threading.Thread(target=connection, args=[listener.accept()[0]], daemon=True).start()
