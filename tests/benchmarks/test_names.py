"""Names of other people's methods, and what lies in the folder of results: no markup, no formula, no path."""

import importlib
import json
import sys

import pytest
from click.testing import CliRunner

from latentfit_bench import digits
from latentfit_bench.figures import LONGEST, conditional_name

MODULE = '''
import torch
from latentfit.plugin import Sampler

print("noise of the import")


class Blob(Sampler):
    """A normal distribution that talks, with a training curve whose name is a formula that is none."""

    conditions = ("classes",)

    def build(self, dim, n):
        self.register_buffer("mean", torch.zeros(dim))

    def fit(self, rows, held_out, run):
        print("noise of the fit")
        for step in range(3):
            run.log(step, 3, **{"$^$_<b>_loss": 1.0})

    def sample(self, n, generator, context=None):
        return torch.randn(n, len(self.mean), generator=generator)


class Failing(Blob):
    def fit(self, rows, held_out, run):
        if len(rows) > 100:
            raise RuntimeError("| <img src=x>\\n\\n# b\\n[a](javascript:b) \\x1b[31m")
'''
TALKING = "../../x|<script>$^$</script>`c`"
FAILING = "/[a](javascript:b)"
LONG = "long" * 80


@pytest.fixture
def outsiders(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "hostile_names.py").write_text(MODULE)
    info = tmp_path / "site" / "hostile-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.2\n")
    methods = {TALKING: "Blob", FAILING: "Failing", LONG: "Blob"}
    entries = "\n".join(f"{name} = hostile_names:{value}" for name, value in methods.items())
    (info / "entry_points.txt").write_text(f"[latentfit.samplers]\n{entries}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    yield
    sys.modules.pop("hostile_names", None)


def test_names_errors_and_links_are_what_they_are_and_stdout_is_json(outsiders, tmp_path, render):
    above = tmp_path / "above"
    out = above / "a" / "out"
    out.mkdir(parents=True)
    outside = above / "outside"
    outside.write_text('{"conditional": ["../../outside", "../outside"]}')
    for name in ("results.json", "table.md", "samples.png", "report.html", "gallery.json"):
        (out / name).symlink_to(outside)
    (out / "training-flow.png").symlink_to(above / "nowhere")
    result = CliRunner().invoke(
        digits.command,
        [
            *("--quick", "--json", "--out", str(out), "--systems", f"Real,{TALKING},{FAILING}"),
            *("--conditional", f"{TALKING},{LONG}"),
        ],
    )
    assert result.exit_code == 1  # one fails
    told = json.loads(result.stdout)
    assert list(told["systems"]) == ["Real", TALKING, FAILING]
    assert list(told["conditional"])[2:] == [TALKING, LONG]
    assert "noise of the fit" in result.stderr
    assert "\x1b" not in result.stderr

    assert outside.read_text() == '{"conditional": ["../../outside", "../outside"]}'
    assert sorted(path.name for path in above.iterdir()) == ["a", "outside"]
    assert [path.name for path in (above / "a").iterdir()] == ["out"]
    assert not any(path.is_symlink() for path in out.iterdir())
    assert json.loads((out / "results.json").read_text()) == told
    assert {conditional_name(TALKING), conditional_name(LONG)} <= {p.name for p in out.iterdir()}

    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>$^$" not in page
    assert "<img src=x" not in page
    assert page.count("<script>") == 1

    rows, kinds = render((out / "table.md").read_text(encoding="utf-8"))
    names = [cells[0] for cells in rows]
    assert names[:4] == ["System", "Real", TALKING, FAILING]
    assert names[-2:] == [TALKING, LONG]
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "em_open", "fence"}
    assert [kind for kind in kinds if kind.startswith("heading")]  # the title's, and no other
    text = (out / "table.md").read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 1


def test_names_of_any_length_give_names_of_files():
    names = {
        conditional_name(name) for name in (LONG, f"{LONG}x", "é" * 200, "CON", ".", "..", "\0")
    }
    assert len(names) == 7
    for name in names:
        assert len(name.encode()) < LONGEST + 40
        assert name.startswith("conditional-")
        assert name.endswith(".png")
        assert not set(name) & set("/\\\0:")


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_an_unfinished_folder_that_is_none_is_told_before_any_work(tmp_path, kind):
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    place = out / "unfinished"
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(outside if kind == "link" else tmp_path / "nowhere")
    result = CliRunner().invoke(digits.command, ["--quick", "--out", str(out)])
    assert result.exit_code == 1
    assert "Remove it." in result.stderr
    assert "training" not in result.stderr
    assert list(outside.iterdir()) == []
    assert [path.name for path in out.iterdir()] == ["unfinished"]


def test_out_may_be_a_link_to_a_folder_but_not_to_nothing(tmp_path):
    (tmp_path / "nothing").symlink_to(tmp_path / "nowhere")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    words = ["--quick", "--systems", "Real", "--out"]
    result = CliRunner().invoke(digits.command, [*words, str(tmp_path / "nothing")])
    assert result.exit_code == 1
    assert "Expected a folder that can be written to for --out" in result.stderr
    assert CliRunner().invoke(digits.command, [*words, str(tmp_path / "link")]).exit_code == 0
    assert (tmp_path / "real" / "results.json").is_file()
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "nowhere").exists()
