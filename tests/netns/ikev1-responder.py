#!/usr/bin/env python3
"""A gateway that speaks IKEv1 only: it answers every IKEv2 request as RFC 2408 wants, in version 1.0, with an
Informational exchange that carries the notification INVALID-MAJOR-VERSION (5).

usage: ikev1-responder.py ADDRESS
"""

import os
import selectors
import socket
import struct
import sys

NON_ESP_MARKER = bytes(4)


def answer(request: bytes) -> bytes | None:
    if len(request) < 28 or request[17] >> 4 != 2:
        return None
    initiator, responder = request[:8], request[8:16]
    # Notification payload (RFC 2408, section 3.14): DOI IPsec, protocol ISAKMP, SPI = both cookies.
    body = struct.pack("!BBHIBBH", 0, 0, 28, 1, 1, 16, 5) + initiator + responder
    header = initiator + responder + struct.pack("!BBBB", 11, 0x10, 5, 0) + os.urandom(4)
    return header + struct.pack("!I", 28 + len(body)) + body


def main() -> None:
    ready = selectors.DefaultSelector()
    for port in (500, 4500):
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((sys.argv[1], port))
        ready.register(listener, selectors.EVENT_READ, NON_ESP_MARKER if port == 4500 else b"")
    while True:
        for key, _ in ready.select():
            request, peer = key.fileobj.recvfrom(65535)
            if request.startswith(key.data) and (reply := answer(request[len(key.data) :])):
                key.fileobj.sendto(key.data + reply, peer)


if __name__ == "__main__":
    main()
