"""Checks of what a sampler is made of: tensors whose shapes are known before the data is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentfit.persistence import read_tensors, write_tensors
from latentfit.registry import load_sampler_class
from latentfit.sampler_base import Sampler
from latentfit.testing._check import Skipped, Violation, expect
from latentfit.testing._fitted import Fitted, Kind, build
from latentfit.testing._lab import Lab

__all__ = [
    "IN_CHILD",
    "saved_sampler_works_in_a_fresh_process",
    "shapes_are_fixed_before_the_fit",
    "state_is_complete",
    "use_changes_nothing",
]

IN_CHILD = "LATENTFIT_CHECK"
"""The environment variable that is set in the process that a check starts."""

_DRAWS = 40
_CHILD_SECONDS = 300


def shapes_are_fixed_before_the_fit(lab: Lab) -> None:
    """build() makes the same names, shapes and dtypes each time, and a fit keeps them."""
    name = lab.cls.__name__
    for kind in (None, *lab.kinds):
        fitted = lab.brief(kind)
        one, other = (_rebuilt(lab, fitted, kind, seed).state_dict() for seed in (1, 2))
        _expect_same_layout(
            one,
            other,
            f"Expected {name}.build(dim, n) to make the same tensors each time it is called with "
            "one dim and n",
        )
        _expect_same_layout(
            one,
            fitted.plugin.state_dict(),
            f"Expected {name}.fit to keep the names, shapes and dtypes that build made, so that a "
            "file fits (use copy_, and leave unused room empty)",
        )


def state_is_complete(lab: Lab) -> None:
    """A second instance, built alike and given the state dict, draws and scores bit for bit the same."""
    for kind in (None, *lab.kinds):
        fitted = lab.brief(kind)
        plugin = _rebuilt(lab, fitted, kind, seed=1)
        try:
            plugin.load_state_dict(fitted.plugin.state_dict())
        except RuntimeError as error:
            raise Violation(
                f"Expected the state dict to load into another {lab.cls.__name__} built alike; {error}"
            ) from error
        plugin.requires_grad_(False).eval()
        again = Fitted(plugin, fitted.rows, fitted.held_out, {}, {}, [])
        _expect_same_use(
            _used(lab, fitted, kind),
            _used(lab, again, kind),
            f"a second {lab.cls.__name__} with the same state dict",
            "All that a fit learns has to be in parameters and buffers; see what fit stores as a "
            "plain attribute.",
        )


def saved_sampler_works_in_a_fresh_process(lab: Lab) -> None:
    """Another process builds the class, loads the saved state, and draws and scores the same bits."""
    module, path = sys.modules.get(lab.cls.__module__), None
    if module is not None and getattr(module, "__file__", None):
        path = os.path.abspath(str(module.__file__))
    if "<locals>" in lab.cls.__qualname__ or path is None:
        raise Skipped(
            f"{lab.cls.__module__}.{lab.cls.__qualname__} can't be imported by another process; "
            "define it at the top level of a file."
        )
    cases: list[tuple[Kind | None, Fitted]] = [
        (kind, lab.brief(kind)) for kind in (None, *lab.kinds)
    ]
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {
        "module": lab.cls.__module__,
        "qualname": lab.cls.__qualname__,
        "path": path,
        "options": lab.options,
        "threads": torch.get_num_threads(),
        "draws": _DRAWS,
        "cases": [],
        "sampler": None,
    }
    for index, (kind, fitted) in enumerate(cases):
        context = _context(lab, kind)
        header["cases"].append(
            {
                "kind": kind,
                "context_dim": 0 if context is None else context.shape[1],
                "dim": fitted.dim,
                "n": len(fitted.rows),
            }
        )
        tensors |= {f"{index}.state.{k}": v for k, v in fitted.plugin.state_dict().items()}
        tensors[f"{index}.rows"] = fitted.rows[:_DRAWS]
        if context is not None:
            tensors[f"{index}.context"] = context
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "given"), Path(folder, "answer")
        latents = _save_for_users(lab, Path(folder, "sampler.safetensors"), header)
        if latents is not None:
            tensors["latents"] = latents
        write_tensors(given, tensors, header)
        _run_child(given, answer)
        got, _ = read_tensors(answer)
    remedy = (
        "What it draws must depend on its options and its state dict only; look for class "
        "attributes, module globals, caches and hash order."
    )
    for index, (kind, fitted) in enumerate(cases):
        answers = {k.partition(".")[2]: v for k, v in got.items() if k.startswith(f"{index}.")}
        _expect_same_use(
            _used(lab, fitted, kind), answers, "the same sampler in a fresh process", remedy
        )
    if latents is not None:
        sampler, _ = lab.hurried()
        expected = {"draws": sampler.sample(_DRAWS, seed=3)}
        if sampler.has_density:
            expected["scores"] = sampler.log_prob(latents)
        answers = {k.partition(".")[2]: v for k, v in got.items() if k.startswith("user.")}
        _expect_same_use(expected, answers, "load_sampler in a fresh process", remedy)


def use_changes_nothing(lab: Lab) -> None:
    """Drawing and scoring leave the parameters and buffers as the fit left them."""
    for kind in (None, *lab.kinds):
        fitted = lab.brief(kind)
        before = {k: v.clone() for k, v in fitted.plugin.state_dict().items()}
        _used(lab, fitted, kind)
        after = fitted.plugin.state_dict()
        changed = [k for k in before if k not in after or not torch.equal(before[k], after[k])]
        expect(
            not changed and before.keys() == after.keys(),
            f"Expected {lab.cls.__name__} to keep its state while it draws and scores; it changed "
            f"{', '.join(changed) or 'the names of its tensors'}.",
        )


def _rebuilt(lab: Lab, fitted: Fitted, kind: Kind | None, seed: int) -> Sampler:
    context = _context(lab, kind)
    width = 0 if context is None else context.shape[1]
    return build(
        lab.cls, lab.options, fitted.dim, len(fitted.rows), context_dim=width, kind=kind, seed=seed
    )


def _context(lab: Lab, kind: Kind | None) -> Tensor | None:
    return lab.contexts(_DRAWS, kind) if kind else None


def _used(lab: Lab, fitted: Fitted, kind: Kind | None) -> dict[str, Tensor]:
    """What a plugin draws by a seed, and how it scores the first training rows."""
    context = _context(lab, kind)
    results = {"draws": fitted.draw(_DRAWS, seed=3, context=context)}
    if lab.cls.has_density:
        results["scores"] = fitted.score(fitted.rows[:_DRAWS], context)
    return results


def _expect_same_use(
    expected: dict[str, Tensor], got: dict[str, Tensor], who: str, remedy: str
) -> None:
    for what, tensor in expected.items():
        expect(
            what in got and torch.equal(tensor, got[what]),
            f"Expected {who} to give the same {what}, bit for bit; got others"
            f"{_difference(tensor, got.get(what))}. {remedy}",
        )


def _difference(one: Tensor, other: Tensor | None) -> str:
    if other is None or one.shape != other.shape:
        return f" ({tuple(one.shape)} before, {other if other is None else tuple(other.shape)} now)"
    return f", by up to {float((one - other).abs().max()):.3g}"


def _expect_same_layout(one: dict[str, Tensor], other: dict[str, Tensor], law: str) -> None:
    first, second = (
        {k: f"{tuple(v.shape)} {v.dtype}".replace("torch.", "") for k, v in state.items()}
        for state in (one, other)
    )
    for key in sorted(first.keys() | second.keys()):
        was, now = first.get(key, "not there"), second.get(key, "not there")
        expect(was == now, f"{law}; {key!r} was {was} and then {now}.")


def _save_for_users(lab: Lab, path: Path, header: dict[str, Any]) -> Tensor | None:
    """Save a LatentSampler, if users can load it: if the class is registered under its name."""
    if lab.name is None or load_sampler_class(lab.name) is not lab.cls:
        return None
    sampler, _ = lab.hurried()
    sampler.save(path)
    header["sampler"] = str(path)
    return sampler.sample(_DRAWS, seed=4)


def _run_child(given: Path, answer: Path) -> None:
    paths = [entry or os.getcwd() for entry in sys.path]
    done = subprocess.run(
        [sys.executable, "-m", "latentfit.testing._fresh", str(given), str(answer)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), IN_CHILD: "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_CHILD_SECONDS,
    )
    tail = done.stderr.strip().splitlines()[-1:] or ["it wrote nothing on stderr"]
    expect(
        done.returncode == 0,
        f"Expected a fresh process to build the class and load its state; it ended with exit code "
        f"{done.returncode}: {tail[0]}",
    )
