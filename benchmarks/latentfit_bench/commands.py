"""What the commands of all tasks share: options, progress, and what they leave behind."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from latentfit_bench.methods import (
    ALL,
    all_methods,
    check_methods,
    find_methods,
    find_rows,
    method_row,
)
from latentfit_bench.report import failures, printable, screen_table
from latentfit_bench.systems import SYSTEMS, System

if TYPE_CHECKING:
    import torch

    from latentfit_bench.datasets import Binarize, ImageData
    from latentfit_bench.settings import Settings

Command = Callable[..., Any]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Request:
    """What the user asked for, from the options that all tasks share."""

    binarize: "Binarize"
    systems: list[System] | None
    methods: list[str]
    conditional: list[str]
    seeds: int
    out: Path
    device: str | None
    quick: bool
    json: bool

    def rows(self) -> list[System]:
        """Return the table's rows: systems in their order, then methods, each once."""
        systems = list(SYSTEMS.values()) if self.systems is None else self.systems
        rows = [*systems, *map(method_row, self.methods)]
        return list({row.name: row for row in rows}.values())


def systems_epilog() -> str:
    """Return the list of systems, and what methods are, for a command's help."""
    width = max(map(len, SYSTEMS))
    lines = [f"  {system.name:{width}}  {system.description}" for system in SYSTEMS.values()]
    methods = (
        "Methods are the installed samplers, others' too, which `latentfit samplers` lists, and auto. "
        "One that fails is told in its row; the others go on, and the exit code is 1."
    )
    return "\n".join(["\b", "Systems:", *lines, "", methods])


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
            help="Which systems, separated by commas; all by default. A method's name is one, too.",
        ),
        click.option(
            "--methods",
            metavar="A,B,...",
            callback=_parse_methods,
            help="More rows: installed methods with their defaults; all for every one that works.",
        ),
        click.option(
            "--conditional",
            metavar="A,B,...",
            callback=_parse_conditional,
            help="Methods to fit with the digits as condition: how often the classifier sees the "
            "digit that was asked for.",
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
            default=f"latentfit-results/{task}",
            show_default=True,
            help="Folder for report.html, results.json, table.md and figures; other files there stay.",
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


def _parse_systems(_: click.Context, __: click.Parameter, value: str | None) -> list[System] | None:
    return None if value is None else _found(find_rows, _names(value))


def _parse_methods(_: click.Context, __: click.Parameter, value: str | None) -> list[str]:
    if value is None:
        return []
    names = _names(value)
    if ALL in names:
        working, errors = all_methods()
        for name, error in errors.items():
            log(f"left out of --methods {ALL}: {name}: {error}")
        at = names.index(ALL)
        names = [*names[:at], *working, *(name for name in names[at:] if name != ALL)]
    return _found(find_methods, names)


def _parse_conditional(_: click.Context, __: click.Parameter, value: str | None) -> list[str]:
    return [] if value is None else _found(find_methods, _names(value))


def _names(value: str) -> list[str]:
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise click.BadParameter(f"expected names, separated by commas; got {value!r}.")
    return names


def _found(find: Callable[[list[str]], Found], names: list[str]) -> Found:
    try:
        return find(names)
    except LookupError as error:
        raise click.BadParameter(str(error)) from error


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
    click.echo(printable(line), err=True)


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

    Raises:
        ClickException: Some rows failed; told after everything is written.
    """
    # Stdout is for the results: what plugins and libraries print goes to stderr.
    with redirect_stdout(sys.stderr):
        results, text = _compare(request, load, settings)

    if request.json:
        click.echo(text, nl=False)
    else:
        click.echo(screen_table(results))
    log(f"{results['seconds']:.0f} s in all; look at {request.out / 'report.html'}")
    failed = failures(results)
    if failed:
        raise click.ClickException("\n".join(["Some methods failed.", *map(printable, failed)]))
    return results


def _compare(
    request: Request, load: Callable[[], "ImageData"], settings: "Settings"
) -> tuple[dict[str, Any], str]:
    """Run the comparison and write its files; give the results, and the text of `results.json`."""
    began = time.perf_counter()
    device = _resolve_device(request.device)
    rows = request.rows()
    check_methods(row.method for row in rows if row.method is not None)
    from latentfit.errors import OptionError

    try:
        check_methods(request.conditional, conditional=True)
    except OptionError as error:
        raise click.BadParameter(str(error), param_hint="--conditional") from error
    data = load()
    unfinished = request.out / "unfinished"
    _make_folder(request.out, unfinished)
    # Slow to import, and not needed for --help or a mistyped option.
    from latentfit.reporting import exhibits_to, render, report_of
    from latentfit_bench import figures, report
    from latentfit_bench.classifier import load_classifier
    from latentfit_bench.exhibits import exhibit
    from latentfit_bench.runner import Run

    counts = f"{len(data.train_images):,} training and {len(data.test_images):,} test images"
    log(f"{data.name}: {counts}")
    run = Run(
        data,
        load_classifier(data.name, device=device),
        rows,
        settings,
        conditional=[method_row(name) for name in request.conditional],
        how=request.binarize,
        device=device,
        log=log,
        unfinished=unfinished,
    )
    results = run.run(range(request.seeds))
    results["quick"] = request.quick

    start = time.perf_counter()
    pictures = figures.draw_all(results, run.gallery, data.image_shape)
    log(f"figures: {time.perf_counter() - start:.1f} s")

    start = time.perf_counter()
    shown = exhibit(
        run.gallery,
        list(results["systems"]),
        data.image_shape,
        points=settings.tsne_points // 2,
        seed=results["seeds"][0],
    )
    log(f"maps and neighbours for the report: {time.perf_counter() - start:.1f} s")
    results["seconds"] = time.perf_counter() - began + run.unfinished.seconds
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    files = {
        **pictures,
        "table.md": report.markdown_table(results).encode(),
        "gallery.json": json.dumps(exhibits_to(shown), allow_nan=False).encode(),
        "report.html": render(report_of(results, shown, name=request.out.resolve().name)).encode(),
        "results.json": text.encode(),
    }
    _write(request.out, files)
    run.unfinished.remove()
    return results, text


def _make_folder(out: Path, unfinished: Path) -> None:
    """Make the folder of the results; better told now than after the trainings that it can't be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"Expected a folder that can be written to for --out; got {out}: {error.strerror}."
        ) from error
    if os.path.lexists(unfinished) and (unfinished.is_symlink() or not unfinished.is_dir()):
        raise click.ClickException(
            f"Expected nothing at {unfinished}, or the folder of a run that was ended; got a file or a link, "
            "which may lead anywhere. Remove it."
        )


def _write(out: Path, files: "Mapping[str, bytes]") -> None:
    """Write the results; an earlier run's figures that this one lacks would stand beside its table."""
    from latentfit_bench import figures
    from latentfit_bench.files import write_atomically

    try:
        earlier = json.loads((out / "results.json").read_text())["conditional"]
        names = {figures.conditional_name(name) for name in earlier}
    except (OSError, ValueError, LookupError, TypeError):
        names = set()
    for name in (figures.NAMES | names) - files.keys():
        (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(out / name, content)
