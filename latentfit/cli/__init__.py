"""The command ``latentfit``; what takes long to import is imported inside the commands.

Exit codes: 0; 1 for an error, told in one line on stderr (``--debug`` adds its traceback); 2 for a
command line that makes no sense; 130 for Ctrl-C.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from latentfit._version import __version__
from latentfit.cli.bench import bench
from latentfit.cli.diagnosing import diagnose
from latentfit.cli.fitting import fit, info, sample, score
from latentfit.cli.plugins import check, new_plugin, samplers
from latentfit.cli.reports import evaluate, report
from latentfit.cli.streams import end_stream, mend_streams, tell
from latentfit.cli.text import one_line
from latentfit.errors import LatentsWarning

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
    mend_streams()
    try:
        with _plain_warnings():
            code = cli.main(words, prog_name="latentfit", standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        tell("Interrupted.")
        return 130
    except click.ClickException as error:
        if debug and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        with suppress(OSError):
            error.show()
        return error.exit_code
    except Exception as error:
        unwritten = end_stream("stdout") if isinstance(error, OSError) else None
        # `latentfit ... | head`: nobody is left to tell anything.
        if isinstance(error, BrokenPipeError):
            return 1
        if debug:
            traceback.print_exc()
        tell(f"Error: {one_line(error if unwritten is None else unwritten, _DEBUG)}")
        return 1
    finally:
        end_stream("stdout")
        end_stream("stderr")
    return code if isinstance(code, int) else 0


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Tell what latentfit warns of in a line, without the place in the code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(
            message: Warning | str, category: type[Warning], *place: Any, **more: Any
        ) -> None:
            if issubclass(category, LatentsWarning):
                tell(f"Warning: {message}")
            else:
                show(message, category, *place, **more)

        warnings.showwarning = show_plainly
        yield


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  latentfit bench digits
  latentfit diagnose z.npy
  latentfit fit --latents z.npy --method spline --out sampler.safetensors
  latentfit sample sampler.safetensors -n 64 --seed 0 --out new.npy
  latentfit evaluate sampler.safetensors --encoder my_models:encoder --data test.npy
  latentfit score sampler.safetensors --latents z.npy | head""",
)
@click.version_option(__version__, prog_name="latentfit", message="%(prog)s %(version)s")
@click.option(_DEBUG, is_flag=True, expose_value=False, help="Show an error's traceback.")
def cli() -> None:
    """Fit samplers to the latents of a frozen encoder; draw, score and save them."""


for _command in (
    bench,
    check,
    diagnose,
    evaluate,
    fit,
    info,
    new_plugin,
    report,
    sample,
    samplers,
    score,
):
    cli.add_command(_command)
