"""Stdin, stdout and stderr as a shell hands them over: closed, full, broken, or of a narrow encoding."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout, suppress
from typing import TextIO

import click

__all__ = ["end_stream", "mend_streams", "results_only", "tell"]


def results_only() -> redirect_stdout[TextIO]:
    """Keep stdout for a command's results: what plugins and libraries print meanwhile goes to stderr."""
    return redirect_stdout(sys.stderr)


def mend_streams() -> None:
    """Make stdin, stdout and stderr usable by anyone: each is there, and takes any text.

    One that a shell closed (``>&-``) is None in Python, which libraries do not expect, and the next file that
    is opened would get its number: it becomes the null device. A character that the terminal's encoding
    lacks is escaped, as is done on stderr anyway.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the descriptors' order
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def tell(line: str) -> None:
    """Write a line to stderr, if it can be written to."""
    with suppress(OSError):
        click.echo(line, err=True)


def end_stream(name: str) -> OSError | None:
    """Write what is left to ``"stdout"`` or ``"stderr"``, and give what went wrong.

    After an error it becomes the null device: the interpreter would try again at its end, tell of it in its
    own words, and exit with another code.
    """
    stream = getattr(sys, name)
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return type(error)(error.errno, error.strerror, name)
    return None
