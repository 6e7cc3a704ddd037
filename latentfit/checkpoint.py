"""Checkpoints: what a fit has done, in a file, to go on with after it was ended.

A fit is a sequence of phases, the same in every run of it: a mixture by EM, a training loop. The file has the
results of the phases that are over, how far the present one is, and where the run itself is: its random
state, its curves, its clock.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latentfit.errors import FileFormatError, OptionError
from latentfit.parallel import SOLO, Workers
from latentfit.persistence import CHECKPOINT, read_tensors, write_tensors

if TYPE_CHECKING:
    from latentfit.training import Run

__all__ = [
    "ENDING",
    "Checkpoint",
    "Phase",
    "State",
    "load_module",
    "optimiser_state",
    "remove_checkpoints",
    "restore_optimiser",
]

State = dict[str, Any]  # nested dicts of tensors and JSON values

SECONDS = 60.0  # between two writes
_STEPS = 16  # of several processes, which have to agree, between two looks at the clock
ENDING = ".checkpoint.safetensors"


class Checkpoint:
    """The checkpoint of one fit.

    Args:
        path: The file; its folder exists.
        fit: What the fit is of, as JSON values by name: a checkpoint of another is refused.
        workers: The processes that share the fit. The first one reads and writes.

    Raises:
        OptionError: The file is another fit's; it tells in what.
        FileFormatError: The file is damaged, or no checkpoint.
    """

    def __init__(self, path: Path, fit: dict[str, Any], workers: Workers = SOLO) -> None:
        self.path, self.fit, self.workers = path, fit, workers
        self.over: list[State] = []
        self.present: State | None = None
        self.written = time.monotonic()
        self.calls = 0
        found: Any = None
        if workers.is_first:
            try:
                found = self._read() if path.exists() else None
            except Exception as error:  # all processes have to learn of it
                found = error
        found = workers.first(found)
        if isinstance(found, Exception):
            raise found
        if found is not None:
            self.over = [found["over"][str(i)] for i in range(len(found["over"]))]
            self.present = found["present"] or None

    def _read(self) -> State:
        tensors, header = read_tensors(self.path, CHECKPOINT)
        fit = header.get("fit")
        if not isinstance(fit, dict):
            raise self.damaged(TypeError(f"a header with {fit!r} as fit"))
        for name in {**self.fit, **fit}:
            expected, got = self.fit.get(name), fit.get(name)
            if expected != got:
                raise OptionError(
                    f"Expected a checkpoint of this fit; {str(self.path)!r} is of one with another {name}: "
                    f"{got!r}, here {expected!r}. Delete it, or name another folder."
                )
        try:
            state = unflatten(tensors, header["state"])
            if not isinstance(state["over"], dict) or not isinstance(state["present"], dict):
                raise TypeError("phases")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.damaged(error) from error
        return state

    def damaged(self, error: Exception) -> FileFormatError:
        """Make the error of a file that does not have what the fit needs."""
        return FileFormatError(
            f"{self.path}: expected the state of this fit; {type(error).__name__}: {error}. Delete it to "
            "start anew."
        )

    def is_due(self) -> bool:
        """Tell whether it is time to write; the same to all processes."""
        self.calls += 1
        if self.workers.count > 1 and self.calls % _STEPS:
            return False
        return bool(self.workers.first(time.monotonic() - self.written >= SECONDS))

    def write(self) -> None:
        """Replace the file."""
        if self.workers.is_first:
            over = {str(i): state for i, state in enumerate(self.over)}
            tensors, plain = flatten({"over": over, "present": self.present or {}})
            write_tensors(self.path, tensors, {"kind": CHECKPOINT, "fit": self.fit, "state": plain})
        self.written = time.monotonic()


class Phase:
    """A part of a fit, which a checkpoint may know already.

    Args:
        run: The fit's.
        number: Which part it is, from 0.

    Attributes:
        state: What it had come to when it was last written; None at its first beginning. The run is where it
            was then once :meth:`restore` is called.
        is_over: Whether that was its end.
    """

    def __init__(self, run: Run, number: int) -> None:
        self._run, self._checkpoint = run, run.checkpoint
        self.state: State | None = None
        self.is_over = False
        if self._checkpoint is not None:
            self.is_over = number < len(self._checkpoint.over)
            over = self._checkpoint.over
            self.state = over[number] if self.is_over else self._checkpoint.present

    def restore(self, load: Callable[[State, State], None]) -> None:
        """Put back what was written, if anything was.

        Args:
            load: Called with the state and with this process's own part of it.

        Raises:
            FileFormatError: It does not fit.
        """
        if self._checkpoint is None or self.state is None:
            return
        try:
            own = self.state["own"][str(self._run.workers.rank)]
            load(self.state["state"], own)
            self._run.restore(self.state["run"], own["run"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise self._checkpoint.damaged(error) from error

    def offer(self, state: Callable[[], tuple[State, State]]) -> None:
        """Write, if it is time.

        Args:
            state: Gives the state and this process's own part of it.
        """
        checkpoint = self._checkpoint
        if checkpoint is not None and checkpoint.is_due():
            checkpoint.present = self._now(*state())
            checkpoint.write()

    def end(self, state: Callable[[], State], *, write: bool = True) -> None:
        """Keep the result, for when a later phase is resumed; write, or leave that to the next time."""
        checkpoint = self._checkpoint
        if checkpoint is None or self.is_over:
            return
        checkpoint.over.append(self._now(state(), {}))
        checkpoint.present = None
        if write or checkpoint.is_due():
            checkpoint.write()

    def _now(self, state: State, own: State) -> State:
        shared, mine = self._run.state()
        all_own = self._run.workers.gather([own | {"run": mine}])
        now: State = copied(
            {"state": state, "run": shared, "own": {str(i): one for i, one in enumerate(all_own)}}
        )
        return now


def remove_checkpoints(folder: str | os.PathLike[str]) -> None:
    """Remove the checkpoints of a folder, and the folder if it has nothing else."""
    for path in Path(folder).glob(f"*{ENDING}"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        Path(folder).rmdir()


def copied(state: Any) -> Any:
    """Copy a state; its tensors may change afterwards."""
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    return state.detach().to("cpu", copy=True) if isinstance(state, Tensor) else state


def flatten(state: State) -> tuple[dict[str, Tensor], State]:
    """Take a state apart: its tensors, by their places as JSON lists, and the rest."""
    tensors: dict[str, Tensor] = {}

    def without(part: State, place: tuple[str, ...]) -> State:
        rest: State = {}
        for name, value in part.items():
            if isinstance(value, Tensor):
                tensors[json.dumps([*place, name])] = value
            elif isinstance(value, dict):
                rest[name] = without(value, (*place, name))
            else:
                rest[name] = value
        return rest

    return tensors, without(state, ())


def unflatten(tensors: dict[str, Tensor], rest: State) -> State:
    """Put together what :func:`flatten` took apart."""
    for key, tensor in tensors.items():
        *place, name = json.loads(key)
        part = rest
        for step in place:
            part = part[step]
        part[name] = tensor
    return rest


def optimiser_state(optimiser: torch.optim.Optimizer) -> State:
    """What an optimiser keeps of each parameter, by the parameter's number."""
    return {str(number): kept for number, kept in optimiser.state_dict()["state"].items()}


def restore_optimiser(
    optimiser: torch.optim.Optimizer, state: State, parameters: Iterable[Tensor]
) -> None:
    """Give an optimiser what it kept.

    Raises:
        ValueError: It is of other parameters.
    """
    for number, parameter in enumerate(parameters):
        for name, kept in state.get(str(number), {}).items():
            if kept.shape not in (parameter.shape, ()):
                raise ValueError(f"{name} of {tuple(kept.shape)} for {tuple(parameter.shape)}")
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict(
        {"state": {int(number): kept for number, kept in state.items()}, "param_groups": groups}
    )


def load_module(module: nn.Module, state: State) -> None:
    """Load a module's own state, of the same dtypes."""
    for name, tensor in module.state_dict().items():
        if state[name].dtype != tensor.dtype:
            raise TypeError(f"{name} of {state[name].dtype} for {tensor.dtype}")
    module.load_state_dict(state)
