"""The command ``latentfit``; what takes long to import is imported inside the commands.

Exit codes: 0; 1 for an error, told in one line on stderr (``--debug`` adds its traceback); 2 for a
command line that makes no sense; 130 for Ctrl-C.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from latentfit._version import __version__
from latentfit.errors import LatentfitError, UnknownPluginError

if TYPE_CHECKING:
    from latentfit.registry import PluginInfo

__all__ = ["cli", "main"]

_DEBUG = "--debug"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: The words after ``latentfit``; None takes them from ``sys.argv``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in given  # taken out here, so that it works after a subcommand too
    words = [word for word in given if word != _DEBUG]
    try:
        code = cli.main(words, prog_name="latentfit", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # `latentfit ... | head`: nobody is left to tell anything
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        click.echo(f"Error: {_one_line(error)}", err=True)
        return 1
    return code if isinstance(code, int) else 0


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  latentfit bench digits
  latentfit fit --latents z.npy --method spline --out sampler.safetensors
  latentfit sample sampler.safetensors -n 64 --seed 0 --out new.npy
  latentfit score sampler.safetensors --latents z.npy | head""",
)
@click.version_option(__version__, prog_name="latentfit", message="%(prog)s %(version)s")
@click.option(_DEBUG, is_flag=True, expose_value=False, help="Show an error's traceback.")
def cli() -> None:
    """Fit samplers to the latents of a frozen encoder; draw, score and save them."""


class _Benchmarks(click.Group):
    """The installed benchmarks; only the one that is run is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        from latentfit.registry import list_benchmarks

        return list(dict.fromkeys(info.name for info in list_benchmarks()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from latentfit.registry import load_benchmark

        try:
            return load_benchmark(cmd_name)
        except UnknownPluginError as error:
            if ctx.resilient_parsing:  # a shell completes a word
                return None
            raise click.UsageError(str(error), ctx) from error

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        from latentfit.registry import list_benchmarks

        with formatter.section("Tasks"):
            formatter.write_dl([(info.name, _origin(info)) for info in list_benchmarks()])


@cli.command(
    cls=_Benchmarks,
    subcommand_metavar="TASK [OPTIONS]",
    epilog="""\b
Examples:
  latentfit bench digits
  latentfit bench mnist --help""",
)
def bench() -> None:
    """Compare samplers on a benchmark."""


@cli.command(
    epilog="""\b
Examples:
  latentfit samplers
  latentfit samplers realnvp
  latentfit samplers --json"""
)
@click.argument("method", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
def samplers(method: str | None, as_json: bool) -> None:
    """List the samplers, or one METHOD's options."""
    if method is not None:
        _print_options(method, as_json)
        return
    from latentfit.registry import list_samplers

    infos = list_samplers()
    if as_json:
        click.echo(json.dumps([asdict(info) for info in infos], indent=2))
    else:
        _print_table([(info.name, info.value, _origin(info)) for info in infos])


@cli.command(
    epilog="""\b
Examples:
  latentfit fit --latents z.npy --out sampler.safetensors
  latentfit fit --latents z.npy --method realnvp -o layers=5 -o hidden=128,128 \\
      -o base=normal --out sampler.safetensors
  latentfit fit --encoder my_models:encoder --data images.npy --out sampler.safetensors"""
)
@click.option("--latents", metavar="FILE", help="Latents: .npy, .npz, .safetensors or .pt.")
@click.option(
    "--encoder",
    "encoder_name",
    metavar="MODULE:ATTRIBUTE",
    help="An encoder to import, the current folder included; it needs --data.",
)
@click.option("--data", metavar="FILE", help="What to encode: .npy, .npz, .safetensors or .pt.")
@click.option("-m", "--method", default="realnvp", show_default=True, help="An installed sampler.")
@click.option(
    "-o",
    "--option",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the method; repeatable. `latentfit samplers METHOD` lists them.",
)
@click.option("--out", required=True, metavar="FILE", help="The .safetensors file to write.")
@click.option("--transform", default="standardize", show_default=True, help="Before the fit.")
@click.option("--validation", default=0.1, show_default=True, help="Fraction that is held out.")
@click.option("--batch-size", default=512, show_default=True, help="Rows per batch and step.")
@click.option("--device", help="Where to fit: cpu, cuda, ... Default: the library's choice.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split and the fit.")
@click.option("--max-seconds", type=float, help="Stop fitting after this time.")
@click.option("--progress/--quiet", default=None, help="Default: a bar if stderr is a terminal.")
def fit(
    latents: str | None,
    encoder_name: str | None,
    data: str | None,
    method: str,
    settings: tuple[str, ...],
    out: str,
    progress: bool | None,
    **arguments: Any,
) -> None:
    """Fit a sampler and save it.

    It is fitted to latents from a file, or to what an encoder makes of data from a file.
    """
    if (latents is None) == (encoder_name is None) or (encoder_name is None) != (data is None):
        raise click.UsageError("Expected either --latents FILE, or --encoder and --data.")
    texts = _settings(settings)

    from latentfit import fit_latent_sampler
    from latentfit.arrays import check_folder, read_array
    from latentfit.options import parse_option_strings
    from latentfit.registry import load_sampler_class

    check_folder(out, latents, data)
    options = parse_option_strings(load_sampler_class(method), texts)
    encoder = None if encoder_name is None else _import_encoder(encoder_name)
    dataset = read_array(latents or data or "")
    sampler = fit_latent_sampler(
        encoder, dataset, method=method, progress=progress, **arguments, **options
    )
    sampler.save(out)
    if progress is not False:
        click.echo(f"{out}: {sampler!r}")


@cli.command(
    epilog="""\b
Examples:
  latentfit sample sampler.safetensors -n 64 --seed 0 --out new.npy"""
)
@click.argument("file")
@click.option("-n", "--number", type=int, required=True, help="How many latents to draw.")
@click.option("--out", required=True, metavar="FILE", help=".npy, .npz, .safetensors or .pt.")
@click.option("--seed", type=int, help="The same seed draws the same latents.  [default: random]")
@click.option("--device", help="Where to draw: cpu, cuda, ...  [default: cpu]")
def sample(file: str, number: int, out: str, seed: int | None, device: str | None) -> None:
    """Draw latents from a saved sampler.

    They have the encoder's own shape and units.
    """
    from latentfit import load_sampler
    from latentfit.arrays import check_target, write_array

    check_target(out, file)
    write_array(out, load_sampler(file, device=device).sample(number, seed=seed))


@cli.command(
    epilog="""\b
Examples:
  latentfit score sampler.safetensors --latents z.npy | sort -g | head
  latentfit score sampler.safetensors --latents z.npy --out scores.npy"""
)
@click.argument("file")
@click.option("--latents", required=True, metavar="FILE", help="The latents to score.")
@click.option("--out", metavar="FILE", help="Write the scores there, not to stdout.")
@click.option("--device", help="Where to compute: cpu, cuda, ...  [default: cpu]")
def score(file: str, latents: str, out: str | None, device: str | None) -> None:
    """Print the log densities of latents.

    One a line, in nats per latent, in the encoder's own units, under the sampler in FILE.
    """
    from latentfit import load_sampler
    from latentfit.arrays import check_target, read_array, write_array

    if out is not None:
        check_target(out, file, latents)
    scores = load_sampler(file, device=device).log_prob(read_array(latents))
    if out is None:
        click.echo("\n".join(repr(value) for value in scores.tolist()))
    else:
        write_array(out, scores)


@cli.command(
    epilog="""\b
Examples:
  latentfit info sampler.safetensors
  latentfit info sampler.safetensors --json"""
)
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
def info(file: str, as_json: bool) -> None:
    """Tell how a saved sampler was fitted."""
    from latentfit.persistence import read_tensors

    facts = read_tensors(file)[1]["info"]  # without the plugin, which may not be installed here
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print_table([(name, _text(value)) for name, value in facts.items()])


def _import_encoder(name: str) -> Any:
    """Import ``module:attribute``, from the current folder too."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise click.UsageError(f"Expected --encoder as MODULE:ATTRIBUTE; got {name!r}.")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise click.UsageError(
            f"Expected --encoder to name a module that is installed or in {os.getcwd()}; "
            f"there is no {error.name!r}."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise click.UsageError(
                f"Expected --encoder {name}; {module_name} has no {attribute!r}."
            )
        found = getattr(found, part)
    return found


def _settings(texts: tuple[str, ...]) -> dict[str, str]:
    """Split ``name=value`` texts; a name may be written with dashes."""
    from latentfit import fit_latent_sampler

    own = set(inspect.signature(fit_latent_sampler).parameters)
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise click.UsageError(f"Expected -o NAME=VALUE; got {text!r}.")
        if name in own:
            raise click.UsageError(f"{name!r} is no option of a method, but one of this command.")
        if name in settings:
            raise click.UsageError(f"Expected each -o once; got {name!r} twice.")
        settings[name] = value.strip()
    return settings


def _print_options(method: str, as_json: bool) -> None:
    from latentfit.options import describe_options
    from latentfit.registry import load_sampler_class

    options = describe_options(load_sampler_class(method)).values()
    rows = [(option.name, option.default, option.expects) for option in options]
    if as_json:
        keys = ("name", "default", "expects")
        click.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        _print_table([(name, _text(default), expects) for name, default, expects in rows])


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _origin(info: PluginInfo) -> str:
    return info.error or f"{info.distribution} {info.version}"


def _text(value: Any) -> str:
    """Write a value as ``-o NAME=VALUE`` takes it."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(member)}" for key, member in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, LatentfitError):
        return text
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}" if error.filename else text
    return f"{type(error).__name__}: {text} ({_DEBUG} shows where)"
