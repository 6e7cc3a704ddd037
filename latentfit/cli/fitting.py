"""``latentfit fit``, ``sample``, ``score`` and ``info``: samplers and their files."""

from __future__ import annotations

import json
from typing import Any

import click

from latentfit.cli.streams import results_only
from latentfit.cli.text import facts_lines
from latentfit.cli.words import (
    import_object,
    launched_accelerator,
    option_class,
    read_condition,
    read_dataset,
    read_latents,
    settings_option,
    split_settings,
)

__all__ = ["fit", "info", "sample", "score"]

_CONDITION = click.option(
    "--condition",
    metavar="VALUE|FILE",
    help="For a sampler that was fitted with one: a class (3), a vector (0.5,1.2), or a file of one per row.",
)


@click.command(
    epilog="""\b
Examples:
  latentfit fit --latents z.npy --out sampler.safetensors
  latentfit fit --latents z.npy --method realnvp -o layers=5 -o hidden=128,128 \\
      -o base=normal --out sampler.safetensors
  latentfit fit --encoder my_models:encoder --data images.npy --out sampler.safetensors
  latentfit fit --encoder my_models:encoder --data my_data:train --store latents/ \\
      --out sampler.safetensors
  torchrun --nproc-per-node 2 -m latentfit fit --encoder my_models:encoder --data images.npy \\
      --store latents/ --out sampler.safetensors
  latentfit fit --latents z.npy --condition labels.npy --out conditional.safetensors"""
)
@click.option(
    "--latents",
    metavar="FILE",
    help="Latents: .npy, .npz, .safetensors or .pt; or a store's folder.",
)
@click.option(
    "--encoder",
    "encoder_name",
    metavar="MODULE:ATTRIBUTE",
    help="An encoder to import, the current folder included; it needs --data.",
)
@click.option(
    "--data",
    metavar="FILE|MODULE:ATTRIBUTE",
    help="What to encode: .npy (read as needed), .npz, .safetensors or .pt; or a dataset to import.",
)
@click.option(
    "--store",
    metavar="FOLDER",
    help="Keep the latents there: reused with the same encoder and data, resumed after a kill.",
)
@click.option(
    "--output",
    "choice",
    metavar="mean|sample|PATH|INDEX",
    help="What to take of what the encoder returns, where there is a choice.",
)
@click.option(
    "--autocast", metavar="DTYPE", help="Encode in bfloat16 or float16, by torch.autocast."
)
@click.option(
    "-m", "--method", default="realnvp", show_default=True, help="An installed sampler, or auto."
)
@settings_option
@click.option(
    "--condition",
    metavar="FILE",
    help="A label for each latent to condition on: whole numbers are classes, floats vectors; or 'labels', "
    "those of the store or the dataset.",
)
@click.option("--out", required=True, metavar="FILE", help="The .safetensors file to write.")
@click.option(
    "--transform",
    default="auto",
    show_default=True,
    help="Before the fit: auto, scale, standardize, whiten or none.",
)
@click.option("--validation", default=0.1, show_default=True, help="Fraction that is held out.")
@click.option("--batch-size", default=512, show_default=True, help="Rows per batch and step.")
@click.option("--device", help="Where to fit: cpu, cuda, ... Default: the library's choice.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split and the fit.")
@click.option("--max-seconds", type=float, help="Stop fitting after this time.")
@click.option(
    "--checkpoint",
    metavar="FOLDER",
    help="Keep what is done of the fit there, every minute: the same command goes on from it. Removed when "
    "the sampler is written.",
)
@click.option("--progress/--quiet", default=None, help="Default: a bar if stderr is a terminal.")
def fit(
    latents: str | None,
    encoder_name: str | None,
    data: str | None,
    choice: str | None,
    method: str,
    settings: tuple[str, ...],
    condition: str | None,
    out: str,
    checkpoint: str | None,
    progress: bool | None,
    **arguments: Any,
) -> None:
    """Fit a sampler and save it.

    It is fitted to latents from a file, or to what an encoder makes of data. Several processes, started
    by torchrun or accelerate launch, share the work.
    """
    if (latents is None) == (encoder_name is None) or (encoder_name is None) != (data is None):
        raise click.UsageError("Expected either --latents FILE, or --encoder and --data.")
    texts = split_settings(settings)
    accelerator = launched_accelerator()  # first: it chooses the process's own GPU

    from latentfit import fit_latent_sampler
    from latentfit.arguments import check_path
    from latentfit.arrays import read_array
    from latentfit.checkpoint import remove_checkpoints
    from latentfit.options import parse_option_strings
    from latentfit.persistence import check_target

    inputs = (latents, data, None if condition == "labels" else condition)
    check_target(out, *inputs, suffixes=[".safetensors"])
    options = parse_option_strings(option_class(method), texts)
    encoder = None if encoder_name is None else import_object(encoder_name, "--encoder")
    dataset = read_latents(latents) if latents is not None else read_dataset(data or "")
    labels: Any = condition  # None, or "labels": those of the dataset
    if condition not in (None, "labels"):
        labels = read_array(condition or "")
    sampler = fit_latent_sampler(
        encoder,
        dataset,
        method=method,
        condition=labels,
        output=int(choice) if choice and choice.lstrip("-").isdecimal() else choice,
        progress=progress,
        accelerator=accelerator,
        checkpoint=checkpoint,
        **arguments,
        **options,
    )
    if accelerator is None or accelerator.is_main_process:
        sampler.save(out)
        if checkpoint is not None:
            rows = sampler.info.get("ranking", [sampler.info])
            fits = ("{}", "{}, again")
            remove_checkpoints(
                check_path("checkpoint", checkpoint),
                [fit.format(row["method"]) for row in rows for fit in fits],
            )
        if progress is not False:
            click.echo(f"{out}: {sampler!r}")
    if accelerator is not None:
        accelerator.wait_for_everyone()  # whoever leaves the group early may be aborted at its exit
        accelerator.end_training()


@click.command(
    epilog="""\b
Examples:
  latentfit sample sampler.safetensors -n 64 --seed 0 --out new.npy
  latentfit sample conditional.safetensors -n 64 --condition 3 --out threes.npy
  latentfit sample sampler.safetensors -n 64 --decoder my_models:decoder --grid out.png"""
)
@click.argument("file")
@click.option("-n", "--number", type=int, required=True, help="How many latents to draw.")
@click.option("--out", metavar="FILE", help="Write the latents: .npy, .npz, .safetensors or .pt.")
@click.option(
    "--grid", metavar="FILE", help="Write a .png of the images that --decoder makes of them."
)
@click.option("--decoder", metavar="MODULE:ATTRIBUTE", help="A decoder to import, for --grid.")
@click.option("--seed", type=int, help="The same seed draws the same latents.  [default: random]")
@click.option("--device", help="Where to draw: cpu, cuda, ...  [default: cpu]")
@_CONDITION
def sample(
    file: str,
    number: int,
    out: str | None,
    grid: str | None,
    decoder: str | None,
    seed: int | None,
    device: str | None,
    condition: str | None,
) -> None:
    """Draw latents from a saved sampler, and images of them, if there is a decoder.

    Latents have the encoder's own shape and units.
    """
    if (out is None and grid is None) or (grid is None) != (decoder is None):
        raise click.UsageError("Expected --out FILE, or --grid FILE and --decoder, or all of them.")
    from latentfit import load_sampler
    from latentfit.arrays import SUFFIXES, write_array
    from latentfit.cli.images import PICTURES, write_grid
    from latentfit.persistence import check_target

    if out is not None:
        check_target(out, file, condition, suffixes=SUFFIXES)
    if grid is not None:
        check_target(grid, file, condition, out, suffixes=PICTURES)
        if number < 1:
            raise click.UsageError(f"Expected -n of at least 1 for --grid; got {number}.")
    given = None if condition is None else read_condition(condition)
    decoding = None if decoder is None else import_object(decoder, "--decoder")
    sampler = load_sampler(file, device=device, decoder=decoding)
    latents = sampler.sample(number, seed=seed, condition=given)
    if grid is not None:
        write_grid(grid, sampler.decode(latents))
    if out is not None:
        write_array(out, latents)


@click.command(
    epilog="""\b
Examples:
  latentfit score sampler.safetensors --latents z.npy | sort -g | head
  latentfit score sampler.safetensors --latents z.npy --out scores.npy"""
)
@click.argument("file")
@click.option("--latents", required=True, metavar="FILE", help="The latents to score.")
@click.option("--out", metavar="FILE", help="Write the scores there, not to stdout.")
@click.option("--device", help="Where to compute: cpu, cuda, ...  [default: cpu]")
@_CONDITION
def score(
    file: str, latents: str, out: str | None, device: str | None, condition: str | None
) -> None:
    """Print the log densities of latents.

    One a line, in nats per latent, in the encoder's own units, under the sampler in FILE.
    """
    from latentfit import load_sampler
    from latentfit.arrays import SUFFIXES, read_array, write_array
    from latentfit.persistence import check_target

    if out is not None:
        check_target(out, file, latents, condition, suffixes=SUFFIXES)
    given = None if condition is None else read_condition(condition)
    with results_only():
        scores = load_sampler(file, device=device).log_prob(read_array(latents), condition=given)
    if out is None:
        click.echo("\n".join(repr(value) for value in scores.tolist()))
    else:
        write_array(out, scores)


@click.command(
    epilog="""\b
Examples:
  latentfit info sampler.safetensors
  latentfit info sampler.safetensors --json"""
)
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
def info(file: str, as_json: bool) -> None:
    """Tell how a saved sampler was fitted."""
    from latentfit.arguments import check_path
    from latentfit.errors import FileFormatError
    from latentfit.persistence import read_tensors

    # Without the plugin, which may not be installed here.
    facts = read_tensors(check_path("file", file))[1].get("info")
    if not isinstance(facts, dict):
        raise FileFormatError(f"{file}: expected a latentfit header with info; got {facts!r}.")
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo("\n".join(facts_lines(facts)))
