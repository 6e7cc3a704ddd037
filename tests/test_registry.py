"""Plugins through entry points: listed without being imported, and told apart when they are broken."""

import importlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

import latentfit
from latentfit import fit_latent_sampler, list_benchmarks, list_samplers
from latentfit.errors import (
    DuplicatePluginError,
    PluginLoadError,
    PluginVersionError,
    UnknownPluginError,
)
from latentfit.plugin import Sampler
from latentfit.probe import probe_samplers
from latentfit.registry import (
    API_VERSION,
    NO_PLUGINS,
    load_benchmark,
    load_sampler_class,
    sampler_distribution,
)

_WHOLE = """
from latentfit.plugin import Sampler
class Plugin(Sampler):
    def __init__(self, *, size: int = 3): super().__init__()
    def build(self, dim, n): pass
    def fit(self, rows, held_out, run): pass
    def sample(self, n, generator): pass
"""
MODULES = {
    "working": _WHOLE,
    "missing": "import a_library_that_is_not_there\n",
    "raising": "raise RuntimeError('at import')\n",
    "exiting": "import sys\nsys.exit('no licence')\n",
    "skipping": "class Skipped(BaseException): pass\nraise Skipped('not here')\n",
    "interrupting": "raise KeyboardInterrupt\n",
    "unparsable": "def:\n",
    "instance": "Plugin = 3\n",
    "unrelated": "class Plugin: pass\n",
    "abstract": "from latentfit.plugin import Sampler\nclass Plugin(Sampler): pass\n",
    "attributeless": "",
    "unreadable": f"{_WHOLE.replace('size: int', 'size: list[int]')}",
    "undefined": f"from __future__ import annotations\n{_WHOLE.replace('int', 'Nowhere')}",
    "vanishing": "import os\nos._exit(7)\n",
    "crashing": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
    "hanging": "import time\ntime.sleep(1000)\n",
    "drawing": f"{_WHOLE}import torch\nDRAWN = torch.rand(1).item()\ntorch.manual_seed(3)\n",
    "noisy": f"{_WHOLE}import os\nprint('false', flush=True)\nos.write(1, b'false')\n",
    "spoiling": f"{_WHOLE}import fake_spoilt\nfake_spoilt.Plugin = 3\n",
    "spoilt": _WHOLE,
}


class Site:
    """A folder of installed distributions, on sys.path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self,
        distribution: str,
        entries: dict[str, str],
        *,
        metadata: bool = True,
        suffix: str = "",
    ) -> Path:
        info = self.folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(exist_ok=True)
        if metadata:
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
            )
        listed = "\n".join(f"{name} = {value}" for name, value in entries.items())
        with (info / "entry_points.txt").open("a") as file:
            for group in ("samplers", "benchmarks"):
                file.write(f"[latentfit.{group}{suffix}]\n{listed}\n\n")
        importlib.invalidate_caches()
        return info

    def module(self, kind: str) -> str:
        (self.folder / f"fake_{kind}.py").write_text(MODULES[kind])
        return f"fake_{kind}:Plugin"


def errors(*names: str, check: bool = False) -> list[str | None]:
    """What the list says is wrong with samplers of these names."""
    infos = {info.name: info.error for info in list_samplers(check=check)}
    return [infos[name] for name in names]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for kind in MODULES:
        monkeypatch.delitem(sys.modules, f"fake_{kind}", raising=False)
    return Site(tmp_path)


def test_the_first_party_plugins_are_installed_and_load() -> None:
    samplers = {i.name: i for i in list_samplers() if i.distribution == "latentfit"}
    assert {"realnvp", "spline", "wgan-gp"} <= samplers.keys()
    for name, info in samplers.items():
        assert info.error is None
        assert issubclass(load_sampler_class(name), Sampler)
        assert sampler_distribution(name) == f"{info.distribution} {info.version}"
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
        ("kd", " Did you mean 'kde'"),
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
    with pytest.raises(UnknownPluginError, match="Unknown sampler 'nobodys'"):
        sampler_distribution("nobodys")


BROKEN_IMPORTS = [
    ("missing", ModuleNotFoundError, "ModuleNotFoundError: No module named 'a_library"),
    ("raising", RuntimeError, "RuntimeError: at import"),
    ("exiting", SystemExit, "SystemExit: no licence"),
    ("skipping", BaseException, "Skipped: not here"),
    ("unparsable", SyntaxError, "SyntaxError: invalid syntax"),
    ("attributeless", AttributeError, "AttributeError: .*Plugin"),
]


@pytest.mark.parametrize("kind, cause, message", BROKEN_IMPORTS)
def test_a_plugin_that_cannot_be_imported_is_told_with_its_owner_and_breaks_no_other(
    kind: str, cause: type[BaseException], message: str, site: Site
) -> None:
    site.install("broken-dist", {"theirs": site.module(kind)})
    assert errors("theirs") == [None]  # nobody looked
    whose = "The sampler 'theirs' of broken-dist 1.2 can't be used: "
    with pytest.raises(PluginLoadError, match=f"{whose}importing .* raised {message}") as e:
        load_sampler_class("theirs")
    assert isinstance(e.value.__cause__, cause)
    assert str(e.value) == whose + str(e.value.reason)
    assert load_sampler_class("wgan-gp").__name__ == "WGANGP"


def test_a_plugin_that_draws_while_it_is_imported_draws_the_same_each_time(site: Site) -> None:
    site.install("rude-dist", {"theirs": site.module("drawing")})
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        load_sampler_class("theirs")
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(sys.modules.pop("fake_drawing").DRAWN)
    assert drawn[0] == drawn[1]


def test_ctrl_c_while_a_plugin_is_imported_stays_ctrl_c(site: Site) -> None:
    site.install("slow-dist", {"theirs": site.module("interrupting")})
    with pytest.raises(KeyboardInterrupt):
        load_sampler_class("theirs")


@pytest.mark.parametrize(
    "value, reason",
    [
        ("fake_nowhere:Plugin", "there is no module 'fake_nowhere'"),
        ("fake_nowhere.deep:Plugin", "there is no module 'fake_nowhere'"),
        ("not an entry point!!", "expected an entry point module:attribute; got 'not an entry"),
        ("fake_nowhere", "expected an entry point module:attribute; got 'fake_nowhere'"),
        ("json:", "expected an entry point module:attribute; got 'json:'"),
        ("", "expected an entry point module:attribute; got ''"),
    ],
)
def test_an_entry_point_that_points_nowhere_is_listed_so(
    value: str, reason: str, site: Site
) -> None:
    site.install("broken-dist", {"theirs": value})
    (listed,) = errors("theirs")
    assert str(listed).startswith(reason)
    with pytest.raises(PluginLoadError, match="'theirs' of broken-dist 1.2"):
        load_sampler_class("theirs")


def test_to_look_for_a_module_imports_no_package_around_it(site: Site) -> None:
    package = site.folder / "fake_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    site.install("deep-dist", {"theirs": "fake_package.deep:Plugin"})
    assert errors("theirs") == [None]
    assert "fake_package" not in sys.modules


@pytest.mark.parametrize(
    "content", [b"[latentfit.samplers]\ntheirs\n", b"[latentfit.samplers]\n\xff = x:y\n"]
)
def test_a_damaged_entry_points_file_hides_nobody_elses(content: bytes, site: Site) -> None:
    info = site.install("damaged-dist", {"theirs": site.module("working")})
    (info / "entry_points.txt").write_bytes(content)
    before = {i.name for i in list_samplers()}
    assert {"realnvp", "spline"} <= before
    assert load_sampler_class("wgan-gp").__name__ == "WGANGP"
    if b"\xff" not in content:
        (reason,) = errors("(damaged-dist)")
        assert re.match(r"its entry_points.txt can't be read: \w+Error: .", str(reason))
        with pytest.raises(PluginLoadError, match="entry_points.txt can't be read"):
            load_sampler_class("(damaged-dist)")


@pytest.mark.parametrize("kind, got", [("instance", "3"), ("unrelated", "<class 'fake_unrelated")])
def test_a_plugin_of_another_type_is_refused(kind: str, got: str, site: Site) -> None:
    site.install("odd-dist", {"theirs": site.module(kind)})
    where = f"'theirs' of odd-dist 1.2 can't be used: fake_{kind}:Plugin: expected"
    with pytest.raises(
        PluginLoadError, match=f"{where} a subclass of latentfit.plugin.Sampler; got {got}"
    ):
        load_sampler_class("theirs")
    with pytest.raises(PluginLoadError, match=f"{where} a click.Command; got {got}"):
        load_benchmark("theirs")


def test_an_abstract_class_is_refused_with_what_it_lacks(site: Site) -> None:
    site.install("half-dist", {"theirs": site.module("abstract")})
    with pytest.raises(PluginLoadError, match="Plugin does not implement build, fit, sample"):
        load_sampler_class("theirs")


def test_a_plugin_for_another_version_of_the_api_is_listed_and_refused_as_such(site: Site) -> None:
    site.install("future-dist", {"theirs": site.module("working")}, suffix=".v2")
    assert API_VERSION == 1
    assert errors("theirs") == ["written for plugin API 2; this latentfit has plugin API 1"]
    for load in (load_sampler_class, load_benchmark):
        with pytest.raises(PluginVersionError) as e:
            load("theirs")
        told = str(e.value)
        assert "'theirs' of future-dist 1.2 is written for plugin API 2; this latentfit has" in told
        assert "Install a release of future-dist for plugin API 1, or a latentfit for 2." in told
    assert "fake_working" not in sys.modules


@pytest.mark.parametrize("other", [".v2", ".v10"])
def test_a_plugin_for_several_versions_is_used_through_the_right_one(
    site: Site, other: str
) -> None:
    site.install("broad-dist", {"theirs": "fake_nowhere:Plugin"}, suffix=other)
    site.install("broad-dist", {"theirs": site.module("working")})
    assert errors("theirs") == [None]
    assert len([info for info in list_samplers() if info.name == "theirs"]) == 1
    assert load_sampler_class("theirs").__name__ == "Plugin"


def test_a_group_with_the_number_of_this_version_is_this_version_s(site: Site) -> None:
    site.install("careful-dist", {"theirs": site.module("working")}, suffix=f".v{API_VERSION}")
    assert errors("theirs") == [None]
    assert load_sampler_class("theirs").__name__ == "Plugin"


def test_a_plugin_that_is_registered_twice_in_one_distribution_is_one(site: Site) -> None:
    site.install("careful-dist", {"theirs": site.module("working")}, suffix=f".v{API_VERSION}")
    site.install("careful-dist", {"theirs": site.module("working")})
    assert [info.error for info in list_samplers() if info.name == "theirs"] == [None]
    site.install("careful-dist", {"theirs": "json:loads"})
    with pytest.raises(DuplicatePluginError, match="by careful-dist 1.2 and careful-dist 1.2"):
        load_sampler_class("theirs")


def test_a_plugin_for_another_version_takes_no_name_away(site: Site) -> None:
    site.install("future-dist", {"realnvp": "fake_nowhere:Plugin"}, suffix=".v2")
    told = {i.distribution: i.error for i in list_samplers() if i.name == "realnvp"}
    assert told == {
        "latentfit": None,
        "future-dist": "written for plugin API 2; this latentfit has plugin API 1",
    }
    assert load_sampler_class("realnvp").__name__ == "RealNVP"


@pytest.mark.parametrize(
    "suffix", [".vx", ".v", ".v0", "v2", ".v2.extra", ".v" + 5000 * "9", ".legacy"]
)
def test_groups_that_are_no_version_are_left_alone(site: Site, suffix: str) -> None:
    site.install("odd-dist", {"theirs": site.module("working")}, suffix=suffix)
    assert "theirs" not in {info.name for info in list_samplers()}


@pytest.mark.parametrize("value", ["1", "yes", "true"])
def test_no_plugins_leaves_the_first_party_ones(
    site: Site, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    site.install("someones-flow", {"theirs": site.module("working"), "realnvp": "x:Y"})
    monkeypatch.setenv("LATENTFIT_NO_PLUGINS", value)
    assert {info.distribution for info in list_samplers()} == {"latentfit"}
    assert {info.distribution for info in list_benchmarks()} == {"latentfit"}
    assert load_sampler_class("realnvp").__name__ == "RealNVP"  # the impostor is hidden, too
    with pytest.raises(
        UnknownPluginError,
        match=f"{NO_PLUGINS} is set and hides 'theirs' of someones-flow 1.2; unset it",
    ):
        load_sampler_class("theirs")
    site.install("a-rival", {"theirs": "x:Y"})
    whose = "'theirs' of a-rival 1.2, someones-flow 1.2"
    with pytest.raises(UnknownPluginError, match=f"hides {whose}; unset"):
        load_sampler_class("theirs")
    for name in ("nobodys", ["nobodys"]):
        with pytest.raises(UnknownPluginError, match=f"{NO_PLUGINS} is set and hides all plugins"):
            load_sampler_class(name)  # type: ignore[arg-type]
    assert "fake_working" not in sys.modules


@pytest.mark.parametrize("value", ["", "0", None])
def test_no_plugins_switched_off_hides_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    site.install("someones-flow", {"theirs": site.module("working")})
    monkeypatch.delenv(NO_PLUGINS, raising=False)
    if value is not None:
        monkeypatch.setenv(NO_PLUGINS, value)
    assert load_sampler_class("theirs").__name__ == "Plugin"
    with pytest.raises(UnknownPluginError) as e:
        load_sampler_class("nobodys")
    assert NO_PLUGINS not in str(e.value)


def test_of_two_plugins_with_one_name_none_is_picked(site: Site) -> None:
    site.install("impostor", {"realnvp": site.module("working")})
    infos = [info for info in list_samplers() if info.name == "realnvp"]
    assert {info.distribution for info in infos} == {"impostor", "latentfit"}
    for info in infos:
        assert "impostor 1.2 and latentfit" in str(info.error)
    with pytest.raises(
        DuplicatePluginError,
        match="'realnvp' is registered by impostor 1.2 and lat.*rename that of impostor",
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
    folder = site.install("versionless", {"other": "fake_working:Plugin"})
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: versionless\n")
    assert sampler_distribution("other") == "versionless ?"


REASONS = {
    "working": None,
    **{kind: f"importing 'fake_{kind}:Plugin' raised {m}" for kind, _, m in BROKEN_IMPORTS},
    "interrupting": "importing it raised KeyboardInterrupt",
    "instance": "fake_instance:Plugin: expected a subclass of latentfit.plugin.Sampler; got 3",
    "abstract": "fake_abstract:Plugin: Plugin does not implement build, fit, sample",
    "unreadable": r"The option 'size' of Plugin has the type list\[int\]; expected int, float",
    "undefined": "The annotations of Plugin's constructor can't be read: NameError: name 'Nowhere'",
    "noisy": None,
}


def test_the_process_that_tries_plugins_tells_what_each_raises(
    site: Site, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    site.install("many", {kind: site.module(kind) for kind in REASONS})
    program = (
        f"import sys; sys.path.append({str(site.folder)!r})\nfrom latentfit.probe import answer"
    )
    lines = run_python("-c", f"{program}\nanswer({[*REASONS]!r})").stdout.splitlines()
    ready, *answers = map(json.loads, lines)
    assert ready == ""
    for (kind, reason), told in zip(REASONS.items(), answers, strict=True):
        assert told == "" if reason is None else re.match(reason, told), (kind, told)


def test_check_tries_what_metadata_finds_nothing_wrong_with(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("odd-dist", {"theirs": site.module("raising"), "nowhere": "fake_nowhere:Plugin"})
    tried = []

    def probe(names: Sequence[str]) -> dict[str, str]:
        tried.extend(names)
        return {"theirs": "no good"}

    before = {info.name: info for info in list_samplers()}
    assert before["nowhere"].error
    monkeypatch.setattr("latentfit.probe.probe_samplers", probe)
    after = {info.name: info for info in list_samplers(check=True)}
    assert sorted(tried) == sorted(before.keys() - {"nowhere"})
    assert after == {**before, "theirs": replace(before["theirs"], error="no good")}


@pytest.mark.slow
def test_plugins_that_end_the_process_are_told_and_the_others_tried(site: Site) -> None:
    kinds = ["working", "vanishing", "noisy", "crashing", "spoilt"]
    site.install("many", {kind: site.module(kind) for kind in kinds})
    assert probe_samplers(kinds) == {
        "vanishing": "to import it ended the process with exit code 7",
        "crashing": "to import it ended the process with SIGSEGV",
    }


@pytest.mark.slow
def test_a_plugin_that_hangs_is_given_up(site: Site) -> None:
    site.install("slow-dist", {"theirs": site.module("hanging"), "z": site.module("working")})
    told = probe_samplers(["theirs", "z"], seconds=2)
    assert told == {"theirs": "to import it took longer than 2 s"}


@pytest.mark.slow
def test_what_one_plugin_does_to_another_is_not_held_against_that(site: Site) -> None:
    kinds = ["spoiling", "spoilt"]
    site.install("rude-dist", {kind: site.module(kind) for kind in kinds})
    site.install("polite-dist", {"instance": site.module("instance")})
    assert probe_samplers([*kinds, "instance"]).keys() == {"instance"}


@pytest.mark.slow
def test_check_lists_all_and_imports_nothing_here(site: Site) -> None:
    site.install("broken-dist", {"theirs": site.module("raising")})
    site.install("future-dist", {"future": site.module("vanishing")}, suffix=".v2")
    modules = set(sys.modules)
    infos = {info.name: info for info in list_samplers(check=True)}
    assert [info.name for info in list_samplers()] == list(infos)
    assert infos.pop("future").error == "written for plugin API 2; this latentfit has plugin API 1"
    assert infos.pop("theirs").error == (
        "importing 'fake_raising:Plugin' raised RuntimeError: at import"
    )
    own = [info for info in infos.values() if info.distribution == "latentfit"]
    assert own
    assert {info.name: info.error for info in own if info.error} == {}
    assert not {name for name in set(sys.modules) - modules if name.startswith("fake_")}


def test_a_saved_sampler_imports_the_plugin_of_its_name_and_no_other(
    site: Site, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    (site.folder / "fake_hostile.py").write_text(
        f"open({str(site.folder / 'canary')!r}, 'w').close()\nfrom latentfit_gan import WGANGP as Plugin\n"
    )
    site.install("hostile-dist", {"hostile": "fake_hostile:Plugin", "gmm-2": "fake_hostile:Plugin"})
    file = site.folder / "sampler.safetensors"
    latents = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    fit_latent_sampler(None, latents, method="wgan-gp", steps=2, hidden=(8,), progress=False).save(
        file
    )
    program = f"""
import json, sys
sys.path.append({str(site.folder)!r})
import latentfit
assert "hostile" in [info.name for info in latentfit.list_samplers()]
latentfit.load_sampler({str(file)!r}).sample(3)
known = ("latentfit_", "fake_", "normflows", "nflows", "sklearn", "click", "scipy")
print(json.dumps(sorted(m for m in sys.modules if m.startswith(known))))
"""
    assert json.loads(run_python("-c", program).stdout) == ["latentfit_gan"]
    assert not (site.folder / "canary").exists()
    load_sampler_class("hostile")  # so that the canary is known to sing
    assert (site.folder / "canary").exists()
    del sys.modules["fake_hostile"]
