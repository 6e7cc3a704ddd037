"""What the commands of all tasks share: options, progress, and what they leave behind."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latentfit_bench.systems import SYSTEMS, System, select

if TYPE_CHECKING:
    import torch

    from latentfit_bench.datasets import Binarize, ImageData
    from latentfit_bench.runner import Settings

Command = Callable[..., Any]


@dataclass(frozen=True)
class Request:
    """What the user asked for, from the options that all tasks share."""

    binarize: "Binarize"
    systems: list[System]
    seeds: int
    out: Path
    device: str | None
    quick: bool
    json: bool


def systems_epilog() -> str:
    """Return the list of systems for a command's help."""
    width = max(map(len, SYSTEMS))
    lines = [f"  {system.name:{width}}  {system.description}" for system in SYSTEMS.values()]
    return "\n".join(["\b", "Systems:", *lines])


def shared_options(task: str) -> Callable[[Command], Command]:
    """Return a decorator that adds the options that every task has."""
    options = [
        click.option(
            "--binarize",
            type=click.Choice(["threshold", "bernoulli"]),
            default="threshold",
            show_default=True,
            help="Pixels become one at one half and above, or with their value as a probability "
            "(drawn anew at each epoch).",
        ),
        click.option(
            "--systems",
            metavar="A,B,...",
            callback=_parse_systems,
            help="Which systems, separated by commas; all by default.",
        ),
        click.option(
            "--seeds",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            metavar="N",
            help="Repeat with seeds 0 to N-1, for mean and spread.",
        ),
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("latentfit-results", task),
            show_default=True,
            help="Folder for results.json, table.md and the figures; other files there stay.",
        ),
        click.option(
            "--device",
            callback=_parse_device,
            help="Such as cpu or cuda:0; by default a GPU where there is one.",
        ),
        click.option(
            "--quick", is_flag=True, help="Shorter trainings: a check that it runs, no result."
        ),
        click.option(
            "--json", "json", is_flag=True, help="Print the results as JSON instead of a table."
        ),
    ]

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _parse_systems(_: click.Context, __: click.Parameter, value: str | None) -> list[System]:
    if value is None:
        return list(SYSTEMS.values())
    names = [name.strip() for name in value.split(",") if name.strip()]
    try:
        systems = select(names)
    except KeyError as error:
        raise click.BadParameter(
            f"unknown system {error.args[0]!r}; choose from {', '.join(SYSTEMS)}."
        ) from error
    if not systems:
        raise click.BadParameter(f"expected at least one of {', '.join(SYSTEMS)}; got {value!r}.")
    return systems


def _parse_device(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    import torch

    try:
        # Reading it back also tells devices without memory, such as "meta".
        torch.zeros(1, device=value).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise click.BadParameter(f"{value!r} can't be used here: {reason}") from error
    return value


def _resolve_device(name: str | None) -> "torch.device":
    import torch

    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def log(line: str) -> None:
    """Report progress: one line on stderr."""
    click.echo(line, err=True)


def execute(
    request: Request, load: Callable[[], "ImageData"], settings: "Settings"
) -> dict[str, Any]:
    """Run the comparison, write its files, and print the table or the JSON.

    Args:
        request: What the user asked for.
        load: Loads the data.
        settings: How large the run is.

    Returns:
        The results, as they stand in `results.json`.
    """
    began = time.perf_counter()
    device = _resolve_device(request.device)
    data = load()
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # Better told now than after the trainings.
        raise click.ClickException(
            f"Expected a folder that can be written to for --out; got {request.out}: "
            f"{error.strerror}."
        ) from error
    # Slow to import, and not needed for --help or a mistyped option.
    from latentfit_bench import figures, report
    from latentfit_bench.classifier import load_classifier
    from latentfit_bench.files import write_atomically
    from latentfit_bench.runner import Run

    counts = f"{len(data.train_images):,} training and {len(data.test_images):,} test images"
    log(f"{data.name}: {counts}")
    classifier = load_classifier(data.name, device=device)
    run = Run(
        data, classifier, request.systems, settings, how=request.binarize, device=device, log=log
    )
    results = run.run(range(request.seeds))
    results["quick"] = request.quick

    start = time.perf_counter()
    pictures = figures.draw_all(results, run.gallery, data.image_shape)
    log(f"figures: {time.perf_counter() - start:.1f} s")
    results["seconds"] = time.perf_counter() - began
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    for name in figures.NAMES - pictures.keys():  # an earlier run's would stand beside this table
        (request.out / name).unlink(missing_ok=True)
    for name, content in pictures.items():
        write_atomically(request.out / name, content)
    write_atomically(request.out / "table.md", report.markdown_table(results).encode())
    write_atomically(request.out / "results.json", text.encode())

    if request.json:
        click.echo(text, nl=False)
    else:
        click.echo(report.screen_table(results))
    log(f"{results['seconds']:.0f} s in all; results.json, table.md and figures: {request.out}")
    return results
