"""When a training loop stops: the best weights so far, and what held-out losses say for the noise in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EVALUATION_ROWS", "Best", "Losses", "Watched"]

EVALUATION_ROWS = 2048  # per forward pass: what it makes should stay in the cache
_LEAST_PARTS = 8  # that they are evaluated in, for what the losses scatter by


class Best:
    """The best weights so far, and how long held-out losses have not got better by more than their noise."""

    def __init__(self, module: nn.Module, patience: int) -> None:
        self.module, self.patience = module, patience
        self.waited = 0
        self.reference: Losses | None = None
        self.keep(math.inf, 0)

    @torch.no_grad()
    def keep(self, loss: float, step: int) -> bool:
        """Keep the present weights."""
        self.state = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.loss, self.step = loss, step
        return False

    def offer(self, losses: Losses, step: int) -> bool:
        """Keep the present weights if they are better; tell whether patience has run out."""
        if losses.mean < self.loss:
            self.keep(losses.mean, step)
        if self.reference is None or losses.are_below(self.reference):
            self.reference, self.waited = losses, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self) -> None:
        """Put the best weights in place."""
        self.module.load_state_dict(self.state)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        of = self.reference
        return {
            "weights": self.state,
            "loss": torch.tensor(self.loss, dtype=torch.float64),  # may be infinite
            "step": self.step,
            "waited": self.waited,
            "reference": {} if of is None else {"parts": of.parts, "shares": of.shares},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, tensor in self.state.items():
            tensor.copy_(state["weights"][name])
        self.loss, self.step, self.waited = (
            float(state["loss"]),
            int(state["step"]),
            int(state["waited"]),
        )
        self.reference = Losses(**state["reference"]) if state["reference"] else None


@dataclass(frozen=True)
class Losses:
    """The mean losses of parts of the held-out rows (P,), with their shares of all rows."""

    parts: Tensor
    shares: Tensor

    @property
    def mean(self) -> float:
        """Of all rows."""
        return float(self.parts @ self.shares)

    def are_below(self, others: Losses) -> bool:
        """Tell whether the mean is below the others' by more than the standard error of the difference."""
        gains = others.parts - self.parts
        gain = gains @ self.shares
        error = ((gains - gain).square() @ self.shares / max(1, len(gains) - 1)).sqrt()
        return bool(gain > error)


class Watched:
    """The rows that the loss is evaluated on, with their contexts, in parts that bound the memory."""

    def __init__(self, rows: Tensor, context: Tensor | None) -> None:
        tensors = (rows,) if context is None else (rows, context)
        size = max(1, min(EVALUATION_ROWS, -(-len(rows) // _LEAST_PARTS)))
        self.parts = list(zip(*(tensor.split(size) for tensor in tensors), strict=True))
        sizes = torch.tensor([len(part[0]) for part in self.parts], dtype=torch.float64)
        self.shares = sizes / sizes.sum()

    @torch.no_grad()
    def measure(self, module: nn.Module, loss: Callable[..., Tensor]) -> Losses:
        """Evaluate the loss of each part."""
        module.eval()
        losses = torch.stack([loss(*part) for part in self.parts])
        return Losses(losses.cpu().double(), self.shares)
