#!/usr/bin/env python3
# What tells whether the lab's certificates were revoked: the list at /ca.crl, and OCSP at /ocsp, answered by openssl.
# Each request is a line of the log.
#
# usage: status-server.py ADDRESS PKI

import http.server
import os
import subprocess
import sys
import tempfile

ADDRESS, PKI = sys.argv[1:]


class Status(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved.crl":
            self.send_response(302)
            self.send_header("Location", "/ca.crl")
            self.end_headers()
        elif self.path == "/ca.crl":
            with open(f"{PKI}/ca.crl", "rb") as file:
                self.answer("application/pkix-crl", file.read())
        else:
            self.send_error(404)

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        if self.path != "/ocsp" or length > 65536:
            self.send_error(404)
            return
        with tempfile.TemporaryDirectory() as folder:
            with open(f"{folder}/request", "wb") as file:
                file.write(self.rfile.read(length))
            openssl = ["openssl", "ocsp", "-index", "index.txt", "-CA", "ca.pem", "-rsigner", "ocsp.pem", "-rkey", "ocsp.key"]
            openssl += ["-nmin", "60", "-reqin", f"{folder}/request", "-respout", f"{folder}/response"]
            subprocess.run(openssl, cwd=PKI, check=True, stdout=subprocess.DEVNULL)
            with open(f"{folder}/response", "rb") as file:
                self.answer("application/ocsp-response", file.read())

    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


os.chdir(PKI)
http.server.ThreadingHTTPServer((ADDRESS, 80), Status).serve_forever()
