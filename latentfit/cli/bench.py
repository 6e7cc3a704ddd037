"""``latentfit bench``: the installed benchmarks as subcommands."""

from __future__ import annotations

import click

from latentfit.cli.streams import results_only
from latentfit.cli.text import origin, printable
from latentfit.errors import UnknownPluginError

__all__ = ["bench"]


class _Benchmarks(click.Group):
    """The installed benchmarks; only the one that is run is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        from latentfit.registry import list_benchmarks

        return list(dict.fromkeys(info.name for info in list_benchmarks()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from latentfit.registry import load_benchmark

        try:
            with results_only():
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
            formatter.write_dl([(printable(info.name), origin(info)) for info in list_benchmarks()])


@click.command(
    cls=_Benchmarks,
    subcommand_metavar="TASK [OPTIONS]",
    epilog="""\b
Examples:
  latentfit bench digits
  latentfit bench mnist --help""",
)
def bench() -> None:
    """Compare samplers on a benchmark."""
