"""Checkpoints: what a fit has done, in a file, to go on with after it was ended.

A fit is a sequence of phases, the same in every run of it: a mixture by EM, a training loop. The file has the
results of the phases that are over, how far the present one is, and where the run itself is: its random
state, its curves, its clock.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from latentfit.errors import FileFormatError, OptionError
from latentfit.parallel import SOLO, Workers
from latentfit.persistence import CHECKPOINT, read_tensors, write_tensors

if TYPE_CHECKING:
    from latentfit.training import Run

__all__ = [
    "Checkpoint",
    "DamagedCheckpoint",
    "ForeignCheckpoint",
    "Phase",
    "State",
    "checkpoint_path",
    "load_module",
    "optimiser_state",
    "remove_checkpoints",
    "restore_optimiser",
]

State = dict[str, Any]  # nested dicts of tensors and JSON values

_CPU = torch.device("cpu")
SECONDS = 60.0  # between two writes
_STEPS = 16  # of several processes, which have to agree, between two looks at the clock
_ENDING = ".checkpoint.safetensors"
_LONGEST = 150  # letters of a method's name in a file's name


class ForeignCheckpoint(OptionError):
    """It is another fit's."""


class DamagedCheckpoint(FileFormatError):
    """It is damaged, or no checkpoint at all."""


class Checkpoint:
    """The checkpoint of one fit.

    Args:
        path: The file; its folder is made when it is written.
        fit: What the fit is of, as JSON values by name: a checkpoint of another is refused.
        workers: The processes that share the fit. The first one reads and writes.

    Raises:
        ForeignCheckpoint: The file is another fit's; it tells in what.
        DamagedCheckpoint: The file is damaged, or no checkpoint.
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
                for litter in path.parent.glob(f".{path.name}.*.tmp"):  # of writes that were killed
                    litter.unlink(missing_ok=True)
            except Exception as error:  # all processes have to learn of it
                found = error
        found = workers.first(found)
        if isinstance(found, Exception):
            raise found
        if found is not None:
            self.over = [found["over"][str(i)] for i in range(len(found["over"]))]
            self.present = found["present"] or None

    def _read(self) -> State:
        try:
            tensors, header = read_tensors(self.path, CHECKPOINT)
        except FileFormatError as error:
            raise DamagedCheckpoint(str(error)) from error
        fit = header.get("fit")
        if not isinstance(fit, dict):
            raise self.damaged(TypeError(f"a header with {fit!r} as fit"))
        for name in {**self.fit, **fit}:
            expected, got = self.fit.get(name), fit.get(name)
            if expected != got:
                raise ForeignCheckpoint(
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

    def damaged(self, error: Exception) -> DamagedCheckpoint:
        """Make the error of a file that does not have what the fit needs."""
        return DamagedCheckpoint(
            f"{self.path}: expected the state of this fit; {type(error).__name__}: {error}. Delete it to "
            "start anew."
        )

    def is_due(self) -> bool:
        """Tell whether it is time to write; the same to all processes, which ask together."""
        self.calls += 1
        if self.workers.count > 1 and self.calls % _STEPS:
            return False
        return bool(self.workers.first(self.is_old()))

    def is_old(self) -> bool:
        """Tell whether it is time to write."""
        return time.monotonic() - self.written >= SECONDS

    def write(self) -> None:
        """Replace the file; what can't be written is told, and tried again the next time."""
        self.written = time.monotonic()
        if not self.workers.is_first:
            return
        over = {str(i): state for i, state in enumerate(self.over)}
        tensors, plain = flatten({"over": over, "present": self.present or {}})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            header = {"kind": CHECKPOINT, "fit": self.fit, "state": plain}
            write_tensors(self.path, tensors, header, follow=False)
        except OSError as error:
            warnings.warn(
                f"The checkpoint {str(self.path)!r} can't be written: {error}. The fit goes on.",
                RuntimeWarning,
                stacklevel=2,
            )


class Phase:
    """A part of a fit, which a checkpoint may know already.

    Args:
        run: The fit's.
        number: Which part it is, from 0.
        name: What is done in it. What the checkpoint has of other parts in its place, as a clock may have
            decided for others, is dropped.

    Attributes:
        state: What it had come to when it was last written; None at its first beginning. The run is where it
            was then once :meth:`restore` is called.
        is_over: Whether that was its end.
    """

    def __init__(self, run: Run, number: int, name: str) -> None:
        self._run, self._checkpoint, self._name = run, run.checkpoint, name
        self.state: State | None = None
        self.is_over = False
        if self._checkpoint is not None:
            over = self._checkpoint.over
            self.is_over = number < len(over)
            self.state = over[number] if self.is_over else self._checkpoint.present
            if self.state is not None and self.state.get("name") != name:
                del over[number:]
                self._checkpoint.present = self.state = None
                self.is_over = False

    def restore(self, load: Callable[[State, State], None]) -> None:
        """Put back what was written, if anything was.

        Args:
            load: Called with the state and with this process's own part of it.

        Raises:
            DamagedCheckpoint: It does not fit.
        """
        if self._checkpoint is None or self.state is None:
            return
        try:
            kept = copied(self.state, self._run.generator.device)
            everyone = kept["own"]
            own = everyone[str(self._run.workers.rank)] if len(everyone) > 1 else everyone["0"]
            load(kept["state"], own)
            self._run.restore(kept["run"], own["run"])
        except torch.OutOfMemoryError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise self._checkpoint.damaged(error) from error

    def offer(self, state: Callable[[], tuple[State, State]]) -> None:
        """Write, if it is time; all processes call it together.

        Args:
            state: Gives the state and this process's own part of it.
        """
        checkpoint = self._checkpoint
        if checkpoint is not None and checkpoint.is_due():
            checkpoint.present = self._now(*state())
            checkpoint.write()

    def end(self, state: Callable[[], State], *, together: bool) -> None:
        """Keep the result, for when a later part is resumed.

        Args:
            state: Gives it.
            together: Whether all processes call this together, and have random states of their own; it is
                written then. Else the first one's is everybody's, and written if it is time.
        """
        checkpoint = self._checkpoint
        if checkpoint is None or self.is_over:
            return
        checkpoint.over.append(self._now(state(), {}, together=together))
        checkpoint.present = None
        if together or checkpoint.is_old():
            checkpoint.write()

    def _now(self, state: State, own: State, *, together: bool = True) -> State:
        shared, mine = self._run.state()
        own = copied(own | {"run": mine})
        everyone = self._run.workers.gather([own]) if together else [own]
        now: State = copied({"name": self._name, "state": state, "run": shared})
        return now | {"own": {str(i): one for i, one in enumerate(everyone)}}


def checkpoint_path(folder: str | os.PathLike[str], name: str) -> Path:
    """Give the file of a fit's checkpoint, which is in the folder whatever a plugin calls its method."""
    quoted = quote(name, safe=" ,+", errors="surrogatepass")
    if len(quoted) > _LONGEST:
        quoted = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return Path(folder, f"{quoted}{_ENDING}")


def remove_checkpoints(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Remove the checkpoints of these names from a folder, and the folder if it has nothing else."""
    for name in names:
        checkpoint_path(folder, name).unlink(missing_ok=True)
    with suppress(OSError):
        Path(folder).rmdir()


def copied(state: Any, device: torch.device = _CPU) -> Any:
    """Copy a state to a device, but for random states, which are bytes and belong on the CPU."""
    if isinstance(state, dict):
        return {name: copied(value, device) for name, value in state.items()}
    if not isinstance(state, Tensor):
        return state
    return state.detach().to(_CPU if state.dtype == torch.uint8 else device, copy=True)


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
