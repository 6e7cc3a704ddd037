"""``latentfit diagnose``: what latents in a file are like."""

from __future__ import annotations

import json

import click

from latentfit.cli.words import read_latents

__all__ = ["diagnose"]


@click.command(
    epilog="""\b
Examples:
  latentfit diagnose z.npy
  latentfit diagnose z.npy --validation z_test.npy --figure z.png
  latentfit diagnose latents/ --json"""
)
@click.argument("file")
@click.option("--validation", metavar="FILE", help="Other latents, to tell whether they differ.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
@click.option("--figure", metavar="FILE", help="Write a figure: .png, .pdf or .svg.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the rows that are drawn.")
def diagnose(
    file: str, validation: str | None, as_json: bool, figure: str | None, seed: int
) -> None:
    """Look at latents before a fit: those of a file, or of a store's folder.

    Tells their spectrum, effective rank, intrinsic dimension, tails, clusters, outliers, duplicates and
    shifts, each with one sentence of advice.
    """
    from latentfit import diagnose as diagnose_latents
    from latentfit.diagnosis import FIGURES
    from latentfit.persistence import check_target

    if figure is not None:
        check_target(figure, file, validation, suffixes=FIGURES)
    latents = read_latents(file)
    others = None if validation is None else read_latents(validation)
    diagnosis = diagnose_latents(latents, validation=others, seed=seed)
    if figure is not None:
        diagnosis.save_figure(figure)
    click.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else str(diagnosis))
