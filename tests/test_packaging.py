"""What is built, what it holds, what importing it costs, and which names are public."""

import ast
import inspect
import json
import re
import statistics
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import latentfit
import latentfit.errors
import latentfit.metrics
import latentfit.plugin
import latentfit.reporting
import latentfit.testing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the source distribution, so that both are put to the test."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def shipped(folder: str) -> set[str]:
    """The files below a folder of the checkout that belong into the wheel."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {
        path.relative_to(ROOT / folder).as_posix()
        for path in paths
        if "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_wheel_holds_exactly_what_is_installed(wheel):
    expected = {f"latentfit/{name}" for name in shipped("latentfit")}
    expected |= {f"latentfit_bench/{name}" for name in shipped("benchmarks/latentfit_bench")}
    expected |= shipped("plugins")
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {"latentfit/py.typed", "latentfit/cli/__init__.py", "latentfit_normflows.py"} <= found
    assert {"latentfit_nflows.py", "latentfit_gan.py", "latentfit_bench/mnist.py"} <= found
    templates = {"report.css", "report.html.jinja", "report.js", "run.html.jinja"}
    assert {f"latentfit/reporting/templates/{name}" for name in templates} <= found


def test_wheel_holds_the_classifiers(wheel):
    for task in ("mnist", "digits"):
        weights = wheel.read(f"latentfit_bench/weights/{task}.safetensors")
        assert 1_000 < len(weights) < 1_000_000
        facts = json.loads(wheel.read(f"latentfit_bench/weights/{task}.json"))
        assert 0.9 < facts["test_accuracy"] <= 1


def test_wheel_names_itself_and_its_licence(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    headers = Parser().parsestr(wheel.read(metadata).decode())
    assert headers["Name"] == "latentfit"
    assert headers["Version"] == latentfit.__version__
    assert headers["License-Expression"] == "Apache-2.0"
    assert headers["Requires-Python"] == ">=3.11"
    assert metadata.replace("METADATA", "licenses/LICENSE") in wheel.namelist()


def test_wheel_registers_every_entry_point(wheel):
    (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    lines = wheel.read(path).decode().splitlines()
    for table in (PROJECT["scripts"], *PROJECT["entry-points"].values()):
        for name, value in table.items():
            assert f"{name} = {value}" in lines
            module, _, attribute = value.partition(":")
            path = module.replace(".", "/")
            file = next(n for n in wheel.namelist() if n in (f"{path}.py", f"{path}/__init__.py"))
            assert attribute in wheel.read(file).decode()


def test_constraints_pin_every_dependency():
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[name.lower().replace("_", "-")] = version
    assert pinned["torch"] == "2.13.0"
    wanted = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    names = {requirement.split(">=")[0] for requirement in wanted}
    names = {name for name in names if not name.startswith("latentfit[")}
    assert names <= set(pinned)
    assert all(pinned.values())


def test_every_library_that_is_imported_is_declared():
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["accelerate"], *extras["hub"]]
    bounds = [re.fullmatch(r"([a-z0-9-]+)>=([0-9.]+)", requirement) for requirement in wanted]
    assert all(bounds)  # noxfile.py reads them too
    declared = {bound[1] for bound in bounds if bound}
    imported = set()
    for folder in ("latentfit", "plugins", "benchmarks/latentfit_bench"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(str(node.module).split(".")[0])
    ours = {name for name in imported if name.startswith("latentfit")}
    modules = (
        imported - ours - sys.stdlib_module_names - {"pytest"}
    )  # latentfit.testing's, where there is one
    by_module = {"huggingface_hub": "huggingface-hub", "sklearn": "scikit-learn"}
    assert {by_module.get(module, module) for module in modules} == declared


def test_citation_has_this_version():
    assert f"version: {latentfit.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## [{latentfit.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_public_names():
    assert sorted(latentfit.__all__) == [
        "Diagnosis",
        "LatentSampler",
        "LatentStore",
        "PluginInfo",
        "__version__",
        "diagnose",
        "fit_latent_sampler",
        "list_benchmarks",
        "list_samplers",
        "load_sampler",
    ]
    assert sorted(latentfit.metrics.__all__) == [
        "c2st",
        "c2st_interval",
        "data_copying",
        "density_coverage",
        "energy_distance",
        "frechet_distance",
        "frechet_distance_from_moments",
        "gaussian_moments",
        "kernel_distance",
        "precision_recall",
        "sliced_wasserstein",
    ]
    assert sorted(latentfit.reporting.__all__) == [
        "Cloud",
        "Curves",
        "Exhibits",
        "LatentMap",
        "Neighbours",
        "Picture",
        "Report",
        "Row",
        "draw_grid",
        "evaluate",
        "exhibits_to",
        "find_neighbours",
        "headline",
        "map_latents",
        "read_report",
        "render",
        "report_of",
        "write_report",
    ]
    assert sorted(latentfit.plugin.__all__) == [
        "ConvField",
        "DataError",
        "DeepField",
        "DivergenceError",
        "Field",
        "FlowSampler",
        "GaussianField",
        "GaussianMixture",
        "Interval",
        "OptionError",
        "ParameterAverage",
        "Rows",
        "Run",
        "Sampler",
        "StandardNormal",
        "VelocityField",
        "c2st",
        "minibatches",
        "mixture_size",
        "train",
        "train_adversarially",
    ]
    assert sorted(latentfit.testing.__all__) == [
        "CheckFailed",
        "CheckResult",
        "check_sampler",
        "list_checks",
        "parametrize_with_checks",
        "run_checks",
    ]
    assert sorted(latentfit.errors.__all__) == [
        "DataError",
        "DatasetUnavailableError",
        "DecoderUnavailable",
        "DensityUnavailable",
        "DivergenceError",
        "DuplicatePluginError",
        "EncoderOutputError",
        "FileFormatError",
        "LatentfitError",
        "LatentsWarning",
        "NonFiniteError",
        "NotFittedError",
        "OptionError",
        "PluginLoadError",
        "PluginVersionError",
        "UnknownPluginError",
    ]


@pytest.mark.parametrize(
    "module",
    [latentfit, latentfit.errors, latentfit.metrics, latentfit.plugin, latentfit.reporting],
)
def test_public_names_exist_and_have_docstrings(module):
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        assert isinstance(value, str) or inspect.getdoc(value), name


def test_every_error_is_a_latentfit_error_and_every_warning_a_user_s():
    for name in latentfit.errors.__all__:
        kind = UserWarning if name.endswith("Warning") else latentfit.errors.LatentfitError
        assert issubclass(getattr(latentfit.errors, name), kind)


def test_signature_of_fit():
    parameters = inspect.signature(latentfit.fit_latent_sampler).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        "encoder",
        "dataset",
    ]
    assert defaults == {
        "method": "realnvp",
        "condition": None,
        "decoder": None,
        "output": None,
        "autocast": None,
        "transform": "auto",
        "validation": 0.1,
        "batch_size": 512,
        "device": None,
        "seed": 0,
        "progress": None,
        "max_seconds": None,
        "store": None,
        "accelerator": None,
        "checkpoint": None,
    }


def test_import_loads_no_plugin_and_none_of_their_libraries(run_python):
    code = (
        "import json, sys, latentfit, latentfit.errors, latentfit.metrics, latentfit.plugin\n"
        "import latentfit.reporting\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(run_python("-W", "error", "-c", code).stdout))
    assert "latentfit" in loaded
    assert not loaded & {
        "click",
        "jinja2",
        "latentfit_bench",
        "latentfit_gan",
        "latentfit_nflows",
        "latentfit_normflows",
        "matplotlib",
        "nflows",
        "normflows",
        "pooch",
        "scipy",
        "sklearn",
        "tensorboard",
    }


def test_import_does_nothing_but_import(run_python):
    code = """
import logging, random, signal, sys, warnings
import numpy, torch
def state():
    return (
        random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
        list(warnings.filters), list(logging.getLogger().handlers), torch.get_default_dtype(),
        torch.get_num_threads(), torch.is_grad_enabled(), signal.getsignal(signal.SIGINT),
        list(sys.path), sys.excepthook,
    )
before = state()
import latentfit, latentfit.plugin, latentfit.metrics
assert state() == before
"""
    done = run_python("-c", code)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
def test_import_costs_less_than_half_of_torch_more(run_python):
    code = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    seconds: dict[str, list[float]] = {"torch": [], "latentfit": []}
    for _ in range(5):  # interleaved, so that a busy moment slows both
        for module, times in seconds.items():
            times.append(float(run_python("-c", code.format(module)).stdout))
    ratios = [a / b for a, b in zip(seconds["latentfit"], seconds["torch"], strict=True)]
    ratio = min(statistics.median(ratios), min(seconds["latentfit"]) / min(seconds["torch"]))
    assert ratio < 1.5, seconds
