"""The documentation: its code runs, its commands parse, its links lead somewhere, its lists are whole."""

import doctest
import importlib
import inspect
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import latentfit
import latentfit.errors
import latentfit.metrics
import latentfit.plugin
import latentfit.reporting
import latentfit.testing
import latentfit.transforms
from latentfit.cli import cli, main
from latentfit.registry import load_benchmark

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# All but what building the site copies there. An example's own README is a page like any other.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        p for p in DOCS.rglob("*.md") if p.relative_to(DOCS).parts[0] not in ("_build", "results")
    ),
]


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


FENCE = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``file`` is the name under which a reader would keep it."""

    language: str
    file: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    content = page.read_text("utf-8")
    return [
        Block(*match.group(1, 2, 3), line=content.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(content)
    ]


def commands(block: Block) -> list[list[str]]:
    """The commands of a block, each as words; none if it is no shell block."""
    if block.language != "sh":
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r" (?:&&|\|) ", line) if part.strip()]
    return [shlex.split(part) for part in parts]


def execute(page: Path, folder: Path) -> None:
    """Do what a reader of the page would do, from its top to its end."""
    namespace = {"__name__": page.stem}
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
        if block.language == "python":
            source = "\n" * block.line + block.text  # tracebacks show the page's lines
            exec(compile(source, str(page), "exec"), namespace)
        elif block.language == "toml":
            install(tomllib.loads(block.text)["project"], folder)
        for words in commands(block):
            if words[0] == "latentfit" and words[1] != "bench":
                assert main(words[1:]) == 0, words


def install(project: dict, folder: Path) -> None:
    """Do what pip does with a project whose modules lie in a folder on the path already."""
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(header)
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    importlib.invalidate_caches()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The time for the fit")  # on a busy machine
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language == "python" for block in blocks(page))],
    ids=page_id,
)
def test_page_runs(page, tmp_path, monkeypatch):
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    execute(page, tmp_path)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


SHELL = [(page, words) for page in PAGES for b in blocks(page) for words in commands(b)]
LATENTFIT = [words for page, words in SHELL if words[0] == "latentfit"]


@pytest.fixture
def parse(monkeypatch):
    """Parse a command line as the command would, and do nothing; gives the exit code."""
    benchmarks = [load_benchmark(info.name) for info in latentfit.list_benchmarks()]
    for command in (*cli.commands.values(), *benchmarks):
        monkeypatch.setattr(command, "callback", lambda **_: None)
    return main


@pytest.mark.parametrize("words", LATENTFIT, ids=" ".join)
def test_command_parses(parse, words):
    assert parse(words[1:]) == 0


@pytest.mark.parametrize("line", ["nope", "fit --no-such", "bench nope", "bench digits --no-such"])
def test_command_that_makes_no_sense_would_not_parse(parse, line):
    assert parse(line.split()) == 2


def anchors(page: Path) -> set[str]:
    """What GitHub and MyST call a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        if target.startswith("https://"):
            continue
        if not place.exists() or (anchor and anchor not in anchors(place)):
            lost.append(target)
    assert lost == []


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    framing = {"index.md", "contributing.md", "changelog.md"}  # the site's, of other files' text
    pages = [p.name for p in DOCS.glob("*.md") if p.name not in framing]
    assert [name for name in pages if f"(docs/{name})" not in readme] == []


def test_every_page_is_in_the_site_s_contents():
    contents = (DOCS / "index.md").read_text("utf-8").splitlines()
    pages = {p.relative_to(DOCS).with_suffix("").as_posix() for p in PAGES[2:]} - {"index"}
    assert [page for page in pages if page not in contents] == []


def test_every_method_is_on_the_samplers_page():
    page = (DOCS / "reference" / "samplers.md").read_text("utf-8")
    sections = re.findall(r"^## (\S+)\n\n.*\n\.\. autoclass:: (\S+)\.(\w+)$", page, re.MULTILINE)
    listed = {name: f"{module}:{title}" for name, module, title in sections}
    first_party = [s for s in latentfit.list_samplers() if s.distribution == "latentfit"]
    assert listed == {info.name: info.value for info in first_party}


DOCTESTS = [p for p in (ROOT / "latentfit").rglob("*.py") if ">>> " in p.read_text("utf-8")]


@pytest.mark.parametrize("path", DOCTESTS, ids=lambda path: path.stem)
def test_examples_in_docstrings_are_right(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_readme_has_the_two_commands_and_ci_runs_the_second():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert "pip install -c constraints.txt -e . && latentfit bench digits" in lines
    assert (
        lines.count("pip install -c constraints.txt -e '.[dev]' && pytest -n auto --dist loadfile")
        == 1
    )
    assert sum("'.[dev]'" in line for line in lines) == 1


def test_every_command_is_shown_on_the_command_line_page():
    words = [words for page, words in SHELL if page.name == "cli.md" and words[0] == "latentfit"]
    assert {command for _, command, *_ in words} == set(cli.commands)


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    documented = set(re.findall(r"`(\w+)", page))
    names = {name for name in dir(latentfit.LatentSampler) if not name.startswith("_")}
    modules = (
        latentfit,
        latentfit.errors,
        latentfit.metrics,
        latentfit.plugin,
        latentfit.reporting,
        latentfit.testing,
        latentfit.transforms,
    )
    for module in modules:
        names |= set(module.__all__)
    assert names | {"info", "history"} <= documented


def test_every_helper_is_on_the_plugin_page():
    page = (ROOT / "docs" / "write-a-plugin.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page[page.index("## Helpers") :], re.MULTILINE)
    assert set(latentfit.plugin.__all__) == set(re.findall(r"`(\w+)`", " ".join(rows)))


def test_signatures_on_the_api_page_are_the_code_s():
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    for function in (
        latentfit.diagnose,
        latentfit.fit_latent_sampler,
        latentfit.load_sampler,
        latentfit.metrics.frechet_distance,
        latentfit.metrics.gaussian_moments,
        latentfit.metrics.frechet_distance_from_moments,
        latentfit.metrics.c2st,
        latentfit.metrics.c2st_interval,
        latentfit.metrics.energy_distance,
        latentfit.metrics.kernel_distance,
        latentfit.metrics.sliced_wasserstein,
        latentfit.metrics.density_coverage,
        latentfit.metrics.precision_recall,
        latentfit.metrics.data_copying,
        latentfit.reporting.draw_grid,
        latentfit.reporting.evaluate,
        latentfit.reporting.find_neighbours,
        latentfit.reporting.map_latents,
        latentfit.reporting.read_report,
        latentfit.reporting.render,
        latentfit.reporting.report_of,
        latentfit.reporting.write_report,
        latentfit.testing.check_sampler,
        latentfit.testing.run_checks,
        latentfit.testing.parametrize_with_checks,
        latentfit.testing.list_checks,
    ):
        signature = inspect.signature(function, eval_str=False)
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        text = str(signature.replace(parameters=plain, return_annotation=signature.empty))
        assert f"`{function.__name__}{text}`".replace("'", '"') in page


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_every_system_is_on_the_benchmark_page(name, capsys):
    assert main(["bench", name, "--help"]) == 0
    listed = capsys.readouterr().out.partition("Systems:\n")[2]
    systems = re.findall(r"^ +(\S+)  ", listed, re.MULTILINE)
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert len(systems) == 9
    assert [system for system in systems if f"| {system} | " not in page] == []


def test_every_check_is_on_the_conformance_page_with_its_law():
    page = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    assert rows == list(latentfit.testing.list_checks().items())
