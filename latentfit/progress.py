"""Progress bars on stderr, on terminals only unless asked for; and a line where somebody waits in vain."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import TracebackType

from tqdm import tqdm

__all__ = ["Bar", "say"]


def say(line: str, progress: bool | None) -> None:
    """Write a line to stderr, on a terminal or not, unless progress is False."""
    if progress is not False and sys.stderr is not None:
        with suppress(OSError, ValueError):  # closed or full: the work goes on
            print(line, file=sys.stderr, flush=True)


class Bar:
    """A tqdm bar that is drawn when first moved, and cleared at the end.

    Args:
        label: What is going on.
        progress: True, False, or None for "if stderr is a terminal".
    """

    def __init__(self, label: str, progress: bool | None) -> None:
        self._label = label
        stream = sys.stderr  # None where there is none, as in pythonw
        self._shown = stream is not None and (stream.isatty() if progress is None else progress)
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, step: int, total: int | None, values: dict[str, float] | None = None) -> None:
        """Move to a step, and show the newest values."""
        if not self._shown:
            return
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._label, leave=False, dynamic_ncols=True)
        if values:
            self._bar.set_postfix({k: f"{v:.3f}" for k, v in values.items()}, refresh=False)
        self._bar.update(step - self._bar.n)
