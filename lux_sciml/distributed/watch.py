"""The processes of a run watch one another: where one is gone, the others end, with a sentence, and do not wait for it.

A collective waits for all processes, for ever if one is frozen. Here the first process holds a connection with each
other one, on which both send a byte now and then.
"""

import atexit
import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

BEATS = 8  # in the time after which a process is gone
GRACE = 2.0  # seconds in which the watch may find out why a collective failed


class Watch:
    """The connections of one process. `share(value)` hands a text of the first process to all."""

    def __init__(self, host: str, index: int, count: int, timeout: float, share: Callable[[str | None], str]):
        self.index, self.count, self.timeout = index, count, timeout
        self.lock, self.failed = threading.Lock(), False
        self.connections: dict[int, socket.socket] = {}
        if index == 0:
            listener = socket.create_server(("", 0), backlog=count)
            listener.settimeout(timeout)
            token = secrets.token_hex(8)
            share(f"{listener.getsockname()[1]} {token}")
            with listener:
                while len(self.connections) < count - 1:
                    self._accept(listener, token)
        else:
            port, token = share(None).split()
            connection = socket.create_connection((host, int(port)), timeout)
            connection.sendall(f"{token} {index:08d}\n".encode())
            self.connections[0] = connection
        for other, connection in self.connections.items():
            connection.settimeout(timeout)
            threading.Thread(target=self._listen, args=(other, connection), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        self._hook = sys.excepthook
        sys.excepthook = self._raised
        atexit.register(self._leave)

    def _accept(self, listener: socket.socket, token: str) -> None:
        connection, _ = listener.accept()
        connection.settimeout(self.timeout)
        head = _line(connection).split()
        if len(head) == 2 and head[0] == token:
            self.connections[int(head[1])] = connection
        else:
            connection.close()

    # --- each in a thread ------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        while True:
            time.sleep(self.timeout / BEATS)
            for connection in self.connections.values():
                self._send(connection, ".")

    def _listen(self, other: int, connection: socket.socket) -> None:
        """Until the process at the other end says that it is done, or that one is gone, or is gone itself."""
        while True:
            try:
                line = _line(connection)
            except TimeoutError:
                return self._end(f"process {other} of {self.count} has not answered for {self.timeout:g} s")
            except OSError:
                line = ""
            if line == "":
                return self._end(f"process {other} of {self.count} is gone")
            if line == "done":
                return None
            if line != ".":
                return self._end(line)

    def _end(self, why: str) -> None:
        """Tell the others, and end this process at once: what waits for a collective cannot be woken up."""
        with self.lock:
            for connection in self.connections.values():
                self._send(connection, why)
            sys.stdout.flush()
            sys.stderr.write(
                f"lux.distributed: {why}, so that process {self.index} ends: start all of them again, with resume=True "
                "to go on from the last checkpoint\n"
            )
            sys.stderr.flush()
            os._exit(1)

    def _send(self, connection: socket.socket, line: str) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(f"{line}\n".encode())

    # --- at the end of this process --------------------------------------------------------------------------------

    def _raised(self, kind: Any, error: BaseException, trace: Any) -> None:
        """An error that nothing caught: that of a collective whose other end is gone is for the watch to tell."""
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            time.sleep(GRACE)
        self.failed = True
        self._hook(kind, error, trace)

    def _leave(self) -> None:
        """Say how this process ended. After an error, JAX's own end would wait for processes that wait for this one."""
        last = f"process {self.index} of {self.count} has raised an error" if self.failed else "done"
        for connection in self.connections.values():
            self._send(connection, last)
        if self.failed:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def _line(connection: socket.socket) -> str:
    """One line; empty where the connection has ended."""
    out = b""
    while not out.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            return ""
        out += byte
    return out[:-1].decode()
