"""``latentfit report`` and ``latentfit evaluate``: pages of HTML on benchmarks, and on one's own samplers."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import click

from latentfit.cli.streams import results_only
from latentfit.cli.text import printable, table_lines, wrapped
from latentfit.cli.words import import_object, read_dataset

__all__ = ["evaluate", "report"]

_COLUMNS = ("fd", "c2st", "energy_distance", "coverage", "nll")  # what fits a terminal


@click.command(
    epilog="""\b
Examples:
  latentfit report latentfit-results/digits --out report.html
  latentfit report monday/mnist tuesday/mnist --out both.html"""
)
@click.argument("results", nargs=-1, required=True)
@click.option(
    "--out", default="report.html", show_default=True, metavar="FILE", help="The page to write."
)
def report(results: tuple[str, ...], out: str) -> None:
    """Make the page of a benchmark's results anew, or one that compares several runs.

    RESULTS are folders that `latentfit bench` wrote, or the results.json in them.
    """
    from latentfit.persistence import check_target
    from latentfit.reporting import headline, read_report, write_report
    from latentfit.reporting._page import PAGES

    check_target(out, *results, suffixes=PAGES)
    _check_once(results, "run")
    reports = [
        replace(read_report(path), name=name)
        for path, name in zip(results, _names(results), strict=True)
    ]
    write_report(out, reports)
    for each in reports:
        click.echo(wrapped(printable(f"{each.name}: {headline(each)}")))


@click.command(
    epilog="""\b
Examples:
  latentfit evaluate s.safetensors --encoder my_models:encoder --decoder my_models:decoder \\
      --data test.npy --out report.html
  latentfit evaluate a.safetensors b.safetensors --encoder my_models:encoder \\
      --decoder my_models:decoder --data my_data:test --feature-extractor my_models:classifier"""
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--encoder",
    "encoder_name",
    metavar="MODULE:ATTRIBUTE",
    help="The encoder that the samplers were fitted to; without it --data holds latents.",
)
@click.option(
    "--decoder", "decoder_name", metavar="MODULE:ATTRIBUTE", help="Its decoder, for images."
)
@click.option(
    "--data",
    required=True,
    metavar="FILE|MODULE:ATTRIBUTE",
    help="Data that no sampler was fitted to: .npy, .npz, .safetensors or .pt; or a dataset to import.",
)
@click.option("--labels", metavar="FILE", help="A class for each row of the data, for the map.")
@click.option(
    "--feature-extractor",
    "extractor_name",
    metavar="MODULE:ATTRIBUTE",
    help="A callable that makes features of images, for their Fréchet distance.",
)
@click.option(
    "--output",
    "choice",
    metavar="mean|sample|PATH|INDEX",
    help="What to take of what the encoder returns.",
)
@click.option("-n", "--number", default=1000, show_default=True, help="How many rows are compared.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the rows and the samples.")
@click.option("--device", help="Where to draw: cpu, cuda, ...  [default: cpu]")
@click.option(
    "--out", default="report.html", show_default=True, metavar="FILE", help="The page to write."
)
@click.option("--json", "as_json", is_flag=True, help="Print the measures as JSON on stdout.")
def evaluate(
    files: tuple[str, ...],
    encoder_name: str | None,
    decoder_name: str | None,
    data: str,
    labels: str | None,
    extractor_name: str | None,
    choice: str | None,
    number: int,
    seed: int,
    device: str | None,
    out: str,
    as_json: bool,
) -> None:
    """Hold saved samplers against data, and write a page: real, reconstructed, resampled and sampled.

    Prints the measures; the page has images, a map of the latents, training curves and the data that is
    nearest to the samples.
    """
    from latentfit import load_sampler
    from latentfit.arrays import read_array
    from latentfit.persistence import check_target
    from latentfit.reporting import evaluate as evaluate_samplers
    from latentfit.reporting import headline, write_report
    from latentfit.reporting._page import PAGES

    check_target(out, *files, data, labels, suffixes=PAGES)
    _check_once(files, "sampler")
    with results_only():
        encoder, decoder, features = (
            None if name is None else import_object(name, option)
            for name, option in (
                (encoder_name, "--encoder"),
                (decoder_name, "--decoder"),
                (extractor_name, "--feature-extractor"),
            )
        )
        samplers = {
            name: load_sampler(path, device=device)
            for name, path in zip(_names(files), files, strict=True)
        }
        found = evaluate_samplers(
            samplers,
            encoder,
            read_dataset(data),
            decoder=decoder,
            output=int(choice) if choice and choice.lstrip("-").isdecimal() else choice,
            features=features,
            labels=None if labels is None else read_array(labels),
            n=number,
            seed=seed,
        )
        write_report(out, found)
    if as_json:
        rows = {row.name: {key: row.mean(key) for key in row.values} for row in found.rows}
        click.echo(json.dumps(rows, indent=2))
        return
    keys = [key for key in _COLUMNS if any(row.values.get(key) for row in found.rows)]
    lines = [["", *(key.replace("_", " ") for key in keys)]]
    for row in found.rows:
        if row.is_reference and not row.values:
            continue  # it has images only
        means = [row.mean(key) for key in keys]
        lines.append([printable(row.name), *("" if m is None else f"{m:.3f}" for m in means)])
    click.echo("\n".join(table_lines(lines)))
    click.echo(wrapped(printable(f"{out}: {headline(found)}")))


def _check_once(files: tuple[str, ...], what: str) -> None:
    """Refuse a file that is given twice, by whatever path."""
    from latentfit.errors import DataError

    seen: set[Path] = set()
    for file in files:
        place = _place(file).resolve()
        if place in seen:
            raise DataError(f"Expected each {what} once; got {file} twice.")
        seen.add(place)


def _place(file: str) -> Path:
    """Give a path, of the results in a benchmark's folder that of the folder."""
    from latentfit.arguments import check_path
    from latentfit.reporting._results import RESULTS

    place = Path(os.path.abspath(check_path("path", file)))
    return place.parent if place.name == RESULTS else place


def _names(files: tuple[str, ...]) -> list[str]:
    """Name files and folders by the last parts of their paths: as many as tell each from the others."""
    paths = [_place(file) for file in files]
    parts = [(*p.parent.parts, p.name if p.is_dir() else p.stem) for p in paths]
    names = []
    for own in parts:
        count = 1
        while count < len(own) and sum(p[-count:] == own[-count:] for p in parts) > 1:
            count += 1
        names.append("/".join(own[-count:]))
    return names if len(set(names)) == len(names) else list(files)
