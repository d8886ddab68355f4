"""A real Redis or Valkey server on a free port, for tests of the shared tier."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = ("redis-server", "valkey-server")
START_SECONDS = 20.0


class RedisServer:
    """A server on loopback that keeps nothing on disk. A context manager; it ends with it."""

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        assert program is not None, f"these tests need a server: install one of {PROGRAMS}"
        self.port = free_port() if port is None else port
        self._command = [
            program,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *options,
        ]
        self._log = directory / f"redis-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, empty, at the same port as before, and waits until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                # Any answer will do: it may want a password.
                if self.say("PING"):
                    return
            except OSError:
                pass
            said = self._log.read_text("utf-8", "replace")
            assert self._process.poll() is None, f"the server ended: {said}"
            assert time.monotonic() < deadline, f"the server did not start: {said}"
            time.sleep(0.01)

    def say(self, *words: str) -> bytes:
        """Sends one command; the first bytes of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
            connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return connection.recv(65536)

    def network(self) -> tuple[int, int]:
        """Bytes that it took and gave, as it counts them itself."""
        text = self.say("INFO", "stats").decode()
        found = [
            re.search(rf"^total_net_{way}put_bytes:(\d+)", text, re.MULTILINE)
            for way in ("in", "out")
        ]
        taken, given = (int(each[1]) for each in found if each is not None)
        return taken, given

    def stop(self) -> None:
        """Kills it; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It takes connections and answers nothing, until `thaw`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Certificates:
    """An authority, made here, and a certificate for 127.0.0.1 that it signed: for servers and clients."""

    def __init__(self, directory: Path) -> None:
        self.authority = directory / "ca.crt"
        self.certificate = directory / "own.crt"
        self.key = directory / "own.key"
        new_key = ("-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        ca_key, request = directory / "ca.key", directory / "own.csr"
        extensions = directory / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n", "utf-8")
        program = shutil.which("openssl")
        assert program is not None, "these tests need openssl"
        signer = ("-CA", self.authority, "-CAkey", ca_key, "-CAcreateserial")
        authority, own = ("-out", self.authority), ("-out", self.certificate)
        for words in (
            ("req", "-x509", *new_key, "-subj", "/CN=authority", "-keyout", ca_key, *authority),
            ("req", *new_key, "-subj", "/CN=own", "-keyout", self.key, "-out", request),
            ("x509", "-req", "-in", request, *signer, "-extfile", extensions, *own),
        ):
            subprocess.run([program, *words], check=True, capture_output=True)

    @property
    def options(self) -> tuple[str, ...]:
        """What a server with TLS is started with."""
        return (
            *("--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key)),
            *("--tls-ca-cert-file", str(self.authority)),
        )


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
