"""Importing every plugin to see whether it works, in child processes, so that none can harm this one."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from latentfit.errors import PluginLoadError

__all__ = ["probe_samplers"]

_START_SECONDS = 300.0  # to import torch, on a busy machine
_CHILD = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from latentfit.probe import answer; answer(sys.argv[2:])"
)


def probe_samplers(names: Sequence[str], *, seconds: float = 60.0) -> dict[str, str]:
    """Import each sampler in a child process, and tell what is wrong with those that can't be used.

    One child goes through them. What fails in a child that has imported others before is tried again as the
    first of a new child, so that only what a plugin does by itself counts.

    Args:
        names: Registered names.
        seconds: The time that one import may take.

    Returns:
        The reasons, by name; a name that is not among them works.
    """
    problems: dict[str, str] = {}
    left = list(names)
    while left:
        with _Child(left) as child:
            unable = child.next_answer(_START_SECONDS, "to import latentfit")
            if unable:
                return problems | dict.fromkeys(left, f"it can't be tried: {unable}")
            first = True
            while left:
                problem = child.next_answer(seconds, "to import it")
                if problem and not first:
                    break
                name, first = left.pop(0), False
                if problem:
                    problems[name] = problem
                if child.ended:
                    break
    return problems


class _Child:
    """A process that imports samplers, one after the other, and writes a line on each."""

    def __init__(self, names: Sequence[str]) -> None:
        self.ended = False
        self._command = [
            sys.executable,
            "-P",
            "-c",
            _CHILD,
            json.dumps([*map(str, sys.path)]),
            *names,
        ]

    def __enter__(self) -> _Child:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what a plugin starts can be ended with it
        )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._process.wait()
        self._reader.join(timeout=5)
        if not self._reader.is_alive() and self._process.stdout:
            self._process.stdout.close()

    def next_answer(self, seconds: float, what: str) -> str:
        """Wait for a line: empty if all is well, else the reason."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.ended = True
            return f"{what} took longer than {seconds:g} s"
        with suppress(ValueError):
            return str(json.loads(line))
        self.ended = True  # an empty line, at the pipe's end, or half a line
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=5)
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            return f"{what} ended the process with {how}"
        return f"{what} closed the process's files"

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _kill(self) -> None:
        with suppress(OSError):  # it has ended
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def answer(names: Sequence[str]) -> NoReturn:
    """Do the child's part: import each sampler and write a line of JSON on it, empty if all is well."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what plugins print goes nowhere
    sys.argv[1:] = []

    from latentfit.options import describe_options
    from latentfit.registry import load_sampler_class

    def tell(problem: str) -> None:
        print(json.dumps(" ".join(problem.split())), file=lines, flush=True)

    tell("")
    for name in names:
        try:
            describe_options(load_sampler_class(name))
        except PluginLoadError as error:
            tell(error.reason or str(error))
        except BaseException as error:  # of an import, Ctrl-C included: nobody typed it
            tell(f"importing it raised {type(error).__name__}: {error}")
        else:
            tell("")
    os._exit(0)  # without the exit handlers that plugins left behind
