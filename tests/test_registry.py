"""Plugins through entry points: listed without being imported, and told apart when they are broken."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import latentfit
from latentfit import fit_latent_sampler, list_benchmarks, list_samplers
from latentfit.errors import DuplicatePluginError, PluginLoadError, UnknownPluginError
from latentfit.plugin import Sampler
from latentfit.registry import load_benchmark, load_sampler_class, sampler_distribution

MODULES = {
    "working": "from latentfit.plugin import Sampler\nclass Plugin(Sampler): pass\n",
    "missing": "import a_library_that_is_not_there\n",
    "raising": "raise RuntimeError('at import')\n",
    "exiting": "import sys\nsys.exit('no licence')\n",
    "unparsable": "def:\n",
    "instance": "Plugin = 3\n",
    "unrelated": "class Plugin: pass\n",
    "attributeless": "",
}


class Site:
    """A folder of installed distributions, on sys.path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, entries: dict[str, str], *, metadata: bool = True) -> None:
        info = self.folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        if metadata:
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
            )
        listed = "\n".join(f"{name} = {value}" for name, value in entries.items())
        groups = f"[latentfit.samplers]\n{listed}\n\n[latentfit.benchmarks]\n{listed}\n"
        (info / "entry_points.txt").write_text(groups)
        importlib.invalidate_caches()

    def module(self, kind: str) -> str:
        (self.folder / f"fake_{kind}.py").write_text(MODULES[kind])
        return f"fake_{kind}:Plugin"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for kind in MODULES:
        monkeypatch.delitem(sys.modules, f"fake_{kind}", raising=False)
    return Site(tmp_path)


def test_the_first_party_plugins_are_installed_and_load() -> None:
    samplers = {info.name: info for info in list_samplers()}
    assert {"realnvp", "spline", "wgan-gp"} <= samplers.keys()
    for name, info in samplers.items():
        assert info.error is None
        assert issubclass(load_sampler_class(name), Sampler)
        assert sampler_distribution(name) == f"{info.distribution} {info.version}"
    assert samplers["realnvp"].distribution == "latentfit"
    assert samplers["realnvp"].version == latentfit.__version__
    assert {"digits", "mnist"} <= {info.name for info in list_benchmarks()}
    assert list(samplers) == sorted(samplers)


def test_listing_imports_no_plugin_and_loading_only_its_own(
    run_python: Callable[..., CompletedProcess[str]],
) -> None:
    program = """
import json, sys
import latentfit
from latentfit.registry import load_sampler_class
def seen():
    libraries = "normflows nflows sklearn matplotlib click pooch scipy".split()
    return sorted(m for m in sys.modules if m.startswith("latentfit_") or m in libraries)
latentfit.list_samplers(), latentfit.list_benchmarks()
before = seen()
load_sampler_class("wgan-gp")
print(json.dumps([before, seen()]))
"""
    before, after = json.loads(run_python("-c", program).stdout)
    assert before == []
    assert after == ["latentfit_gan"]


def test_a_third_partys_sampler_is_found_and_loaded(site: Site) -> None:
    site.install("someones-flow", {"theirs": site.module("working")})
    info = next(info for info in list_samplers() if info.name == "theirs")
    assert (info.value, info.distribution, info.version, info.error) == (
        "fake_working:Plugin",
        "someones-flow",
        "1.2",
        None,
    )
    assert "fake_working" not in sys.modules
    assert load_sampler_class("theirs").__name__ == "Plugin"


@pytest.mark.parametrize(
    "name, hint",
    [
        ("real-nvp", " Did you mean 'realnvp'"),
        ("zzz", ""),
        (None, ""),
        (["realnvp"], " Did you mean 'realnvp'"),
        ("", ""),
        ("RealNVP", " Did you mean 'realnvp'"),
    ],
)
def test_an_unknown_name_lists_those_installed_and_the_closest(name: object, hint: str) -> None:
    with pytest.raises(
        UnknownPluginError, match="Unknown sampler .*; installed: .*realnvp.*wgan-gp"
    ) as e:
        fit_latent_sampler(None, [[1.0]], method=name)  # type: ignore[arg-type]
    assert (hint in str(e.value)) if hint else ("Did you mean" not in str(e.value))
    with pytest.raises(UnknownPluginError, match="Unknown benchmark 'mnits'.*Did you mean 'mnist'"):
        load_benchmark("mnits")


@pytest.mark.parametrize(
    "kind, cause, message",
    [
        ("missing", ModuleNotFoundError, "ModuleNotFoundError: No module named 'a_library"),
        ("raising", RuntimeError, "RuntimeError: at import"),
        ("exiting", SystemExit, "SystemExit: no licence"),
        ("unparsable", SyntaxError, "SyntaxError: invalid syntax"),
        ("attributeless", AttributeError, "AttributeError: .*Plugin"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_told_with_its_owner_and_breaks_no_other(
    kind: str, cause: type[BaseException], message: str, site: Site
) -> None:
    site.install("broken-dist", {"theirs": site.module(kind)})
    assert next(i for i in list_samplers() if i.name == "theirs").error is None  # nobody looked
    with pytest.raises(PluginLoadError, match=f"'theirs' of broken-dist 1.2 .*{message}") as e:
        load_sampler_class("theirs")
    assert isinstance(e.value.__cause__, cause)
    assert load_sampler_class("wgan-gp").__name__ == "WGANGP"


@pytest.mark.parametrize("value", ["fake_nowhere:Plugin", "not an entry point!!", "fake_nowhere"])
def test_an_entry_point_that_points_nowhere_is_told(value: str, site: Site) -> None:
    site.install("broken-dist", {"theirs": value})
    with pytest.raises(PluginLoadError, match="'theirs' of broken-dist 1.2"):
        load_sampler_class("theirs")


@pytest.mark.parametrize("kind", ["instance", "unrelated"])
def test_a_plugin_of_another_type_is_refused(kind: str, site: Site) -> None:
    site.install("odd-dist", {"theirs": site.module(kind)})
    where = f"Expected 'fake_{kind}:Plugin', registered as 'theirs' by odd-dist 1.2, to be"
    with pytest.raises(PluginLoadError, match=f"{where} a subclass of latentfit.plugin.Sampler"):
        load_sampler_class("theirs")
    with pytest.raises(PluginLoadError, match=f"{where} a click.Command"):
        load_benchmark("theirs")


def test_of_two_plugins_with_one_name_none_is_picked(site: Site) -> None:
    site.install("impostor", {"realnvp": site.module("working")})
    infos = [info for info in list_samplers() if info.name == "realnvp"]
    assert {info.distribution for info in infos} == {"impostor", "latentfit"}
    for info in infos:
        assert "impostor 1.2 and latentfit" in str(info.error)
    with pytest.raises(
        DuplicatePluginError, match="'realnvp' is registered by impostor 1.2 and lat"
    ):
        load_sampler_class("realnvp")
    assert load_sampler_class("spline").__name__ == "Spline"


def test_one_distribution_seen_twice_is_no_duplicate(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("someones-flow", {"theirs": site.module("working")})
    other = tmp_path / "again"
    other.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    Site(other).install("someones-flow", {"theirs": "fake_working:Plugin"})
    assert [info.error for info in list_samplers() if info.name == "theirs"] == [None]
    assert load_sampler_class("theirs").__name__ == "Plugin"


def test_a_distribution_without_metadata_breaks_nothing(site: Site) -> None:
    site.install("nameless", {"theirs": site.module("working"), "spline": "x:Y"}, metadata=False)
    info = next(info for info in list_samplers() if info.name == "theirs")
    assert (info.distribution, info.version) == ("unknown distribution", "?")
    assert load_sampler_class("theirs").__name__ == "Plugin"
    assert load_sampler_class("realnvp").__name__ == "RealNVP"
    with pytest.raises(DuplicatePluginError, match="latentfit .* and unknown distribution"):
        load_sampler_class("spline")
