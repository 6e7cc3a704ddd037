"""What a run that was ended had done, part by part, so that the same command goes on from it."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentfit_bench.files import write_atomically

_KEY = "latentfit_bench"


class Unfinished:
    """A folder of finished parts of a run: a trained autoencoder, a measured row.

    Args:
        folder: Where they are; None keeps nothing. It is made when there is a part to keep.
        run: What the parts depend on, as JSON values. Those of a run with anything else stay unused.
    """

    def __init__(self, folder: Path | None, run: Mapping[str, Any]) -> None:
        self._folder = folder
        self._run = json.dumps(run, sort_keys=True, default=str)
        self._paths: set[Path] = set()
        self.taken = 0
        self.seconds = 0.0

    def take(self, part: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Give a part that was kept: JSON values and tensors; None where it is not there, or is damaged."""
        if self._folder is None:
            return None
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
            with safe_open(self._path(part), framework="pt") as file:
                kept = json.loads(file.metadata()[_KEY])
                if kept["run"] != self._run or kept["part"] != part:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self._paths.add(self._path(part))
            self.seconds += float(kept["seconds"])
            self.taken += 1
            return kept["values"], tensors
        return None

    def keep(
        self, part: str, seconds: float, values: dict[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        """Keep a part that took so many seconds."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._paths.add(self._path(part))
        text = json.dumps({"run": self._run, "part": part, "seconds": seconds, "values": values})
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_atomically(self._path(part), save(plain, metadata={_KEY: text}))

    def remove(self) -> None:
        """Remove this run's parts, once the results are written; those of another stay."""
        if self._folder is not None:
            for path in self._paths:
                path.unlink(missing_ok=True)
            with suppress(OSError):
                self._folder.rmdir()

    def _path(self, part: str) -> Path:
        assert self._folder is not None
        digest = hashlib.sha256(f"{self._run}\n{part}".encode()).hexdigest()
        return self._folder / f"{digest[:32]}.safetensors"
