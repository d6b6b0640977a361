"""Kernels that end when they should: on a signal, after a failure, with all their children.

A kernel leads a process group of its own, so Ctrl-C in a terminal does not reach it. `Supervisor`
knows every kernel that was started, passes SIGINT, SIGTERM and SIGHUP on to its whole group, and
leaves no process of the group behind. When this process is killed outright, ipykernel itself
notices within a second that its parent is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from subprocess import Popen
from types import FrameType
from typing import IO

from jupyter_client import AsyncKernelManager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 1.0  # seconds between SIGTERM and SIGKILL


class Interrupted(Exception):
    """This process was told to stop by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Supervisor:
    """Owns the kernels that run inside the `with` block and the signals that may stop them."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._kernels: list[Popen] = []
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Supervisor:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # under nohup
                self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.end_kernels()

    def check(self) -> None:
        """Raise Interrupted when a signal has asked for the end."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def end_kernels(self) -> str | None:
        """End what is left of every kernel's group; say how the last kernel died, if it had."""
        cause = None
        for process in self._kernels:
            code = process.poll()
            if code is not None:
                cause = f"by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            _end_group(process)
        self._kernels.clear()
        return cause

    def manager(self, environment: Mapping[str, str], log: IO[bytes]) -> type[AsyncKernelManager]:
        """A kernel manager class: its kernels get `environment` and write their own noise to `log`.

        The noise is what bypasses the notebook: messages of native libraries, a crash's last words.
        """
        supervisor = self

        class SupervisedKernelManager(AsyncKernelManager):
            async def start_kernel(self, **kwargs) -> None:
                supervisor.check()
                await super().start_kernel(
                    env={**os.environ, **environment}, stdout=log, stderr=log, **kwargs
                )
                supervisor._kernels.append(self.provisioner.process)
                if supervisor._signum is not None:
                    supervisor._signal_kernels(signal.SIGKILL)

        return SupervisedKernelManager

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """Ask the kernels to end; the client notices their death and the run unwinds from there."""
        if self._signum is None:
            self._signum = signum
            self._signal_kernels(signal.SIGTERM)
            timer = threading.Timer(GRACE, self._signal_kernels, [signal.SIGKILL])
            timer.daemon = True
            timer.start()
        else:
            self._signal_kernels(signal.SIGKILL)

    def _signal_kernels(self, signum: int) -> None:
        for process in list(self._kernels):
            _signal_group(process, signum)


def _signal_group(process: Popen, signum: int) -> bool:
    """Send a signal to a kernel's group; False when the group is gone."""
    try:
        os.killpg(process.pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _end_group(process: Popen) -> None:
    deadline = time.monotonic() + GRACE
    while process.poll() is None or _signal_group(process, 0):
        if time.monotonic() > deadline:
            _signal_group(process, signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.02)
