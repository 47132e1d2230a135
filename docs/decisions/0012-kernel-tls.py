#!/usr/bin/env python3
"""What decision 0012 says of kernel TLS: run it on a Linux with the module `tls` (`modprobe tls`). It uses loopback only."""

import ctypes
import errno
import os
import select
import socket
import struct
import threading

SOL_TLS, TLS_TX, TLS_RX, TLS_SET_RECORD_TYPE, TCP_ULP = 282, 1, 2, 1, 31
SPLICE_F_MOVE, SPLICE_F_NONBLOCK = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def keys(number=1):
    """struct tls12_crypto_info_aes_gcm_128, of TLS 1.3."""
    fill = lambda length: bytes([number]) * length
    return struct.pack("<HH8s16s4s8s", 0x0304, 51, fill(8), fill(16), fill(4), bytes(8))


def pair():
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.settimeout(60)
        end.setblocking(True)
    return one, other


def seal(sender):
    sender.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    sender.setsockopt(SOL_TLS, TLS_TX, keys())


def open_records(receiver):
    receiver.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    receiver.setsockopt(SOL_TLS, TLS_RX, keys())


def sealed_pair():
    one, other = pair()
    seal(one)
    open_records(other)
    return one, other


def splice(source, sink, length, flags=SPLICE_F_MOVE):
    moved = libc.splice(source, None, sink, None, ctypes.c_size_t(length), flags)
    if moved < 0:
        raise OSError(ctypes.get_errno(), "splice")
    return moved


def outcome(act):
    try:
        return act()
    except OSError as error:
        return errno.errorcode[error.errno]


def wait(end):
    return bool(select.select([end], [], [], 10)[0])


def read_all(end):
    whole = b""
    while piece := end.recv(1 << 17):
        whole += piece
    return whole


class Relay:
    """Plain connection → frames in kernel TLS → plain connection, with the calls that each end makes."""

    CHUNK = 65536

    def __init__(self, total):
        self.data, self.arrived, self.sends, self.receives = os.urandom(total), b"", 0, 0
        self.application, self.near = pair()
        self.sender, self.receiver = sealed_pair()
        self.far, self.service = pair()

    def run(self):
        parts = (self.client, self.send, self.receive, self.collect)
        threads = [threading.Thread(target=part) for part in parts]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return self

    def client(self):
        self.application.sendall(self.data)
        self.application.shutdown(socket.SHUT_WR)

    def send(self):
        out, into = os.pipe()
        while length := splice(self.near.fileno(), into, self.CHUNK):
            self.sender.send(struct.pack(">I", length), socket.MSG_MORE)
            self.sends += 2
            while length:
                length -= splice(out, self.sender.fileno(), length)
                self.sends += 1
        self.sender.send(bytes(4))

    def receive(self):
        out, into = os.pipe()
        while length := struct.unpack(">I", self.receiver.recv(4, socket.MSG_WAITALL))[0]:
            self.receives += 1
            while length:
                moved = splice(self.receiver.fileno(), into, length)
                length -= moved
                self.receives += 1
                while moved:
                    moved -= splice(out, self.far.fileno(), moved)
                    self.receives += 1
        self.far.shutdown(socket.SHUT_WR)

    def collect(self):
        self.arrived = read_all(self.service)


def lengths_of_records(length):
    """Of one frame, as they are on the wire."""
    sender, wire = pair()
    seal(sender)
    out, into = os.pipe()
    os.write(into, bytes(length))
    sender.send(struct.pack(">I", length), socket.MSG_MORE)
    while length:
        length -= splice(out, sender.fileno(), length)
    sender.shutdown(socket.SHUT_WR)
    raw, lengths = read_all(wire), []
    while raw:
        lengths.append(struct.unpack(">H", raw[3:5])[0])
        raw = raw[5 + lengths[-1] :]
    return lengths


def one_record():
    sender, wire = pair()
    seal(sender)
    sender.send(b"some data")
    wait(wire)
    return bytearray(wire.recv(1 << 14))


def unopened():
    sender, receiver = pair()
    open_records(receiver)
    return sender, receiver


print("Linux", os.uname().release)
for total in (64, 1 << 23):
    relay = Relay(total).run()
    same = relay.arrived == relay.data
    print(f"{total} bytes: arrived as sent: {same}; calls of the sender {relay.sends}, of the receiver {relay.receives}")
print("records of a frame of 64 KiB:", lengths_of_records(65536))

sender, receiver = sealed_pair()
sender.sendmsg([b"\x02\x00"], [(SOL_TLS, TLS_SET_RECORD_TYPE, b"\x18")])
wait(receiver)
_, into = os.pipe()
print("a record that is no data: splice", outcome(lambda: splice(receiver.fileno(), into, 100, SPLICE_F_NONBLOCK)))
print("    recv", outcome(lambda: receiver.recv(100)), "recvmsg", outcome(lambda: receiver.recvmsg(100, 100))[:2])
print("new keys to send with:", outcome(lambda: sender.setsockopt(SOL_TLS, TLS_TX, keys(2))))
print("new keys to receive with:", outcome(lambda: receiver.setsockopt(SOL_TLS, TLS_RX, keys(2))))

record, (sender, receiver) = one_record(), unopened()
sender.send(record[:9])
print("half a record: readable", wait(receiver), outcome(lambda: receiver.recv(100, socket.MSG_DONTWAIT)))
sender.send(record[9:])
print("    the whole:", outcome(lambda: receiver.recv(100)))

record, (sender, receiver) = one_record(), unopened()
record[-1] ^= 1
sender.send(record)
print("a damaged record:", outcome(lambda: receiver.recv(100)))

sender, receiver = sealed_pair()
sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
sender.close()
print("a reset:", outcome(lambda: receiver.recv(100)))
