"""Logs of a run: a table of comma-separated values, and TensorBoard's event files."""

import csv
import io
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..components.replacing import replacing


class CSVLog:
    """A table with one row from time to time: `step`, `epoch`, `seconds`, and what the run reports.

    Each row is on the disk when the next one comes. A run that is resumed goes on behind the row of its step.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.csv"
    >>> log = CSVLog(path)
    >>> log.start(0)
    >>> log.write(10, 0, {"loss": 0.5})
    >>> log.close()
    >>> path.read_text().splitlines()[0], path.read_text().splitlines()[1][:4]
    ('step,epoch,seconds,loss', '10,0')
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._columns: list[str] = []

    def start(self, step: int) -> None:
        """Begin a run, or go on with one after a step."""
        self.begun = time.monotonic()
        rows = [row for row in self._rows() if int(row["step"]) <= step] if step and self.path.exists() else []
        self._columns = list(rows[0]) if rows else []
        self._replace(rows)

    def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Add a row."""
        row = {"step": step, "epoch": epoch, "seconds": f"{time.monotonic() - self.begun:.3f}", **values}
        if new := [name for name in row if name not in self._columns]:
            rows = self._rows() if self._columns else []
            self._columns += new
            self._replace([*rows, row])
            return
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerow(row)
        with open(self.path, "a", newline="") as file:
            file.write(text.getvalue())

    def _rows(self) -> list[dict[str, Any]]:
        """What is in the file, without a last line that was cut off."""
        with open(self.path, newline="") as file:
            lines = [line for line in file if line.endswith("\n")]
        return list(csv.DictReader(lines))

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        if self._columns:
            writer = csv.DictWriter(text, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())

    def close(self) -> None:
        """Nothing is open."""


class TensorBoardLog:
    """The event file of a run in a folder, which `tensorboard --logdir=folder` shows; TensorBoard is not needed here.

    Format: TFRecords of `Event` messages with scalar summaries (tensorboard/compat/proto/event.proto).

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> log = TensorBoardLog(folder)
    >>> log.start(0)
    >>> log.write(10, 0, {"loss": 0.5})
    >>> log.close()
    >>> [path.name[:19] for path in folder.iterdir()]
    ['events.out.tfevents']
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    def start(self, step: int) -> None:
        """Begin a run, or go on with one after a step, in a file of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{step}"
        self._file = open(self.folder / name, "ab")
        version = _field(3, b"brain.Event:2")
        purged = _number(2, step) + _field(7, _number(1, 3)) if step else b""  # what follows takes the place of later
        self._event(version)
        if purged:
            self._event(purged)

    def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Add the values of a step."""
        scalars = ({**values, "epoch": epoch}).items()
        summary = b"".join(_field(1, _field(1, name.encode()) + _float(2, value)) for name, value in scalars)
        self._event(_number(2, step) + _field(5, summary))

    def _event(self, content: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + content
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def as_log(log: Any) -> Any:
    """A log, or the one that a path stands for: a table where it ends in `.csv`, else a folder for TensorBoard."""
    if isinstance(log, str | os.PathLike):
        return CSVLog(log) if str(log).endswith(".csv") else TensorBoardLog(log)
    if log is not None and not all(callable(getattr(log, name, None)) for name in ("start", "write", "close")):
        raise TypeError(f"a log is a path, or has `start`, `write` and `close` as CSVLog has, got {log!r}")
    return log


# --- protocol buffers and TFRecords ---------------------------------------------------------------------------------


def _varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def _number(field: int, n: int) -> bytes:
    return _varint(field << 3) + _varint(n)


def _float(field: int, x: float) -> bytes:
    with np.errstate(over="ignore"):  # as infinity
        return _varint(field << 3 | 5) + np.asarray(x, "<f4").tobytes()


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of TFRecords."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC = [_crc_of(byte) for byte in range(256)]
