"""``latentfit samplers``, ``check`` and ``new-plugin``: the installed samplers, and writing one."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from latentfit.cli.streams import results_only
from latentfit.cli.text import origin, printable, table_lines, text_of, wrapped, wrapped_table
from latentfit.cli.words import import_object, option_class, settings_option, split_settings

if TYPE_CHECKING:
    from latentfit.sampler_base import Sampler

__all__ = ["check", "new_plugin", "samplers"]

_STATUSES = ("passed", "failed", "skipped")

_JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout."
)


@click.command(
    epilog="""\b
Examples:
  latentfit samplers
  latentfit samplers realnvp
  latentfit samplers --check
  latentfit samplers --json"""
)
@click.argument("method", required=False)
@click.option(
    "--check",
    "try_all",
    is_flag=True,
    help="Import each, in a process of its own; exit 1 if one is broken.",
)
@_JSON
@click.pass_context
def samplers(ctx: click.Context, method: str | None, try_all: bool, as_json: bool) -> None:
    """List the samplers, or what one METHOD is and its options.

    The list is made from what is installed; no sampler is imported for it.
    """
    if method is not None:
        if try_all:
            raise click.UsageError("Expected either a METHOD or --check; for one: latentfit check.")
        _describe(method, as_json)
        return
    from latentfit.registry import list_samplers

    infos = list_samplers(check=try_all)
    if as_json:
        click.echo(json.dumps([asdict(info) for info in infos], indent=2))
    elif infos:
        rows = [(printable(info.name), printable(info.value), origin(info)) for info in infos]
        click.echo("\n".join(table_lines(rows)))
    if try_all and any(info.error for info in infos):
        ctx.exit(1)


@click.command(
    epilog="""\b
Examples:
  latentfit check gmm
  latentfit check realnvp -o layers=2 -o steps=200
  latentfit check my_module:MySampler"""
)
@click.argument("method")
@settings_option
@click.option("--only", multiple=True, metavar="CHECK", help="A check to run; repeatable.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="What a fit may take whose quality is judged; there are up to three.",
)
@_JSON
@click.pass_context
def check(
    ctx: click.Context,
    method: str,
    settings: tuple[str, ...],
    only: tuple[str, ...],
    max_seconds: float,
    as_json: bool,
) -> None:
    """Run the conformance suite on a sampler.

    METHOD is an installed one, or MODULE:CLASS, the current folder included. The exit code is 1 if a
    check fails.
    """
    from latentfit.options import parse_option_strings
    from latentfit.testing import list_checks, run_checks

    texts = split_settings(settings)
    with results_only():
        cls = _sampler_class(method)
    known = list_checks()
    unknown = [name for name in only if name not in known]
    if unknown:
        raise click.UsageError(f"Expected --only as one of {', '.join(known)}; got {unknown[0]!r}.")
    width = max(map(len, only or known))
    options = parse_option_strings(cls, texts)
    subject = cls if ":" in method else method
    results = []
    with results_only() if as_json else nullcontext():
        for result in run_checks(subject, options, max_seconds=max_seconds, only=only or None):
            results.append(result)
            if not as_json:
                word = {"passed": "ok", "failed": "FAILED"}.get(result.status, result.status)
                click.echo(f"{result.name:<{width}}  {word:<7}  {result.seconds:6.1f} s")
                if result.message:
                    click.echo(wrapped(result.message.strip().partition("\n")[0], indent="    "))
    if as_json:
        facts = {"method": method, "results": [asdict(result) for result in results]}
        click.echo(json.dumps(facts, indent=2))
    else:
        counts: Counter[str] = Counter(result.status for result in results)
        seconds = sum(result.seconds for result in results)
        told = ", ".join(f"{counts[status]} {status}" for status in _STATUSES if counts[status])
        click.echo(f"{method}: {told}, in {seconds:.1f} s")
    if any(result.status == "failed" for result in results):
        ctx.exit(1)


@click.command(
    epilog="""\b
Examples:
  latentfit new-plugin my-sampler
  latentfit new-plugin my-sampler --dir ~/projects"""
)
@click.argument("name")
@click.option("--dir", "folder", default=".", show_default=True, help="Where to put its folder.")
def new_plugin(name: str, folder: str) -> None:
    """Write a project for a sampler of your own, called NAME.

    It works as it stands; replace its mathematics by yours.
    """
    from latentfit.scaffold import write_project

    path = write_project(name, folder)
    shown = (
        path if path.is_absolute() else f"./{path}"
    )  # without a slash pip would look for a package
    click.echo(f"{shown}: a sampler called {name!r}, ready to be changed. Next:")
    click.echo(f"  pip install -e '{shown}[test]'\n  pytest {shown}\n  latentfit samplers {name}")


def _sampler_class(method: str) -> type[Sampler]:
    from latentfit.registry import load_sampler_class
    from latentfit.sampler_base import Sampler

    if ":" not in method:
        return load_sampler_class(method)
    found = import_object(method, "METHOD")
    if not (isinstance(found, type) and issubclass(found, Sampler)):
        raise click.UsageError(
            f"Expected {method} to be a subclass of latentfit.plugin.Sampler; got {found!r}."
        )
    return found


def _describe(method: str, as_json: bool) -> None:
    from latentfit.auto import AUTO
    from latentfit.docstrings import summarise
    from latentfit.options import describe_options
    from latentfit.registry import sampler_distribution

    with results_only():
        cls: Any = option_class(method)
        options = describe_options(cls).values()
    facts: dict[str, Any] = {"name": method, "summary": summarise(cls)}
    if method != AUTO:
        facts["distribution"] = sampler_distribution(method)
        facts["has_density"] = bool(cls.has_density)
        facts["conditions"] = list(cls.conditions)
    if as_json:
        facts["options"] = [
            {
                "name": option.name,
                "default": None if option.required else option.default,
                "required": option.required,
                "expects": option.expects,
                "help": option.help,
            }
            for option in options
        ]
        click.echo(json.dumps(facts, indent=2, default=repr))
        return
    click.echo(wrapped(f"{method}: {_plain(facts['summary'])}"))
    if method != AUTO:
        click.echo("")
        conditions = ", ".join(facts["conditions"]) or "none"
        rows = [
            ("from", facts["distribution"]),
            ("density", "yes" if facts["has_density"] else "no: it only draws samples"),
            ("conditions", conditions),
        ]
        click.echo("\n".join(table_lines(rows)))
    click.echo("")
    rows_of_options = [
        (
            option.name,
            "(required)" if option.required else text_of(option.default),
            option.expects,
            _plain(option.help) or "-",
        )
        for option in options
    ]
    header = ("option", "default", "expected", "what it does")
    click.echo("\n".join(wrapped_table([header, *rows_of_options])) if options else "No options.")


def _plain(text: str) -> str:
    return text.replace("``", "")
