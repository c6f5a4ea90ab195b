"""Processes of worker.py on this machine, started together, listened to, killed and frozen."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent


class Run:
    """Some processes of a task; what each has said so far is in `said`."""

    def __init__(self, task, count, folder=""):
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        flags = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        environment = {**flags, "PYTHONPATH": str(HERE.parent.parent), "NPROC": "16"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, HERE / "worker.py", task, str(i), str(count), str(port), str(folder)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]
        self.said, self.errors = [[] for _ in range(count)], [[] for _ in range(count)]
        self.threads = []
        for i, process in enumerate(self.processes):
            for stream, lines in ((process.stdout, self.said[i]), (process.stderr, self.errors[i])):
                thread = threading.Thread(target=self._listen, args=(stream, lines), daemon=True)
                thread.start()
                self.threads.append(thread)

    def _listen(self, stream, lines):
        with stream:
            for line in stream:
                lines.append(json.loads(line) if line.startswith("{") else line)

    def step(self, index=0):
        """The last step that a process has told."""
        return max((line["step"] for line in self.said[index] if isinstance(line, dict) and "step" in line), default=0)

    def until(self, step, index=0, timeout=180):
        """Wait for a step of a process."""
        end = time.monotonic() + timeout
        while self.step(index) < step:
            if time.monotonic() > end or self.processes[index].poll() is not None:
                raise RuntimeError(f"step {step} was not reached: {self.errors[index][-20:]}")
            time.sleep(0.01)

    def send(self, index, kind):
        os.kill(self.processes[index].pid, kind)

    def ended(self, timeout=300, but=()):
        """Wait for the processes, except some; the status of each, and the seconds until the last of them ended."""
        start = time.monotonic()
        waited = [process for i, process in enumerate(self.processes) if i not in but]
        try:
            status = [process.wait(max(0.1, start + timeout - time.monotonic())) for process in waited]
        finally:
            seconds = time.monotonic() - start
            for process in self.processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.kill()
                    process.wait()
            for thread in self.threads:
                thread.join(10)
        return status, seconds

    def words(self, index):
        """What a process has said of its end: the lines on the error stream that are no reports of libraries."""
        noise = ("[Gloo]", " : ", "E0", "W0", "I0", "F0")
        return [line.strip() for line in self.errors[index] if line.strip() and not line.lstrip().startswith(noise)]

    def last(self, index=0):
        return next(line for line in reversed(self.said[index]) if isinstance(line, dict))
