"""The command line: what it prints where, what it writes, and how it exits."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import latentfit
from latentfit import load_sampler
from latentfit.arrays import read_array, write_array
from latentfit.cli import cli, main
from latentfit.options import describe_options
from latentfit.persistence import write_tensors
from latentfit.registry import load_sampler_class

COMMANDS = sorted(cli.commands)
QUICK = ("-o", "steps=20", "-o", "layers=2", "-o", "components=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with latents.npy (400, 3) and two samplers fitted to them by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    generator = torch.Generator().manual_seed(0)
    write_array(folder / "latents.npy", 5 + 3 * torch.randn(400, 3, generator=generator))
    common = ("--latents", str(folder / "latents.npy"), "--quiet")
    assert main(["fit", *common, *QUICK, "--out", str(folder / "flow.safetensors")]) == 0
    gan = ("--method", "wgan-gp", "-o", "steps=5", "-o", "hidden=8,8")
    assert main(["fit", *common, *gan, "--out", str(folder / "gan.safetensors")]) == 0
    return folder


@pytest.fixture
def run(capsys, folder, monkeypatch):
    """Run a command line in a folder with those files; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(words)
        return code, *capsys.readouterr()

    return run


def start(*words: str, cwd: Path, **options) -> subprocess.Popen[str]:
    """Start a command line in a process of its own."""
    # Unbuffered, Python takes a write that a closed pipe cut short for a whole one.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-m", "latentfit", *words],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_examples(run, words, flag):
    code, out, err = run(*words, flag)
    assert (code, err) == (0, "")
    assert "Examples:\n  " in out
    assert f"  latentfit {' '.join(words)}".rstrip() in out.partition("Examples:")[2]


@pytest.mark.parametrize("task", ["digits", "mnist"])
def test_help_of_a_benchmark_has_examples(tmp_path, task):
    # In a process of its own: a click command remembers the first names that its help option had.
    with start("bench", task, "-h", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert f"Examples:\n    latentfit bench {task}\n" in out


def test_version(run):
    assert run("--version") == (0, f"latentfit {latentfit.__version__}\n", "")


def test_fit_says_what_it_saved_unless_quiet(run, tmp_path):
    out = str(tmp_path / "s.safetensors")
    code, told, err = run("fit", "--latents", "latents.npy", *QUICK, "--out", out)
    assert (code, err) == (0, "")
    assert told.startswith(f"{out}: LatentSampler('realnvp'")
    assert run("fit", "--latents", "latents.npy", *QUICK, "--out", out, "--quiet") == (0, "", "")


def test_fit_passes_everything_on(run, tmp_path):
    out = str(tmp_path / "s.safetensors")
    words = ["fit", "--latents", "latents.npy", *QUICK, "-o", "hidden=16,8", "-o", "base=normal"]
    words += ["-o", "learning-rate=1e-3", "--transform", "none", "--validation", "0.25"]
    words += ["--batch-size", "64", "--seed", "7", "--device", "cpu", "--max-seconds", "60"]
    assert run(*words, "--out", out)[0] == 0
    facts = load_sampler(out).info
    assert facts["options"] == {
        "layers": 2,
        "hidden": (16, 8),
        "base": "normal",
        "components": 2,
        "steps": 20,
        "learning_rate": 1e-3,
    }
    expected = {"transform": "none", "n": 300, "n_validation": 100, "batch_size": 64, "seed": 7}
    assert expected.items() <= facts.items()


def test_fit_is_the_api_s(run, tmp_path):
    latents = read_array("latents.npy")
    direct = latentfit.fit_latent_sampler(None, latents, steps=20, layers=2, components=2)
    loaded = load_sampler("flow.safetensors")
    assert torch.equal(loaded.sample(9, seed=1), direct.sample(9, seed=1))


def test_max_seconds_ends_a_fit(run, tmp_path):
    out = str(tmp_path / "s.safetensors")
    started = time.monotonic()
    words = ("fit", "--latents", "latents.npy", "-o", "steps=100000000", "--validation", "0")
    assert run(*words, "--max-seconds", "1", "--out", out)[0] == 0
    assert time.monotonic() - started < 30
    assert load_sampler(out).sample(3).shape == (3, 3)


def test_fit_with_an_encoder_from_the_current_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_models_a.py").write_text(
        "import torch\n"
        "class Pair:\n"
        "    encoder = torch.nn.Linear(6, 2)\n"
        "Pair.encoder.weight.data = torch.arange(12.0).view(2, 6).sin()\n"
    )
    write_array("x.npz", torch.arange(300.0, dtype=torch.float64).square().sin().view(50, 6))
    words = ("fit", "--encoder", "my_models_a:Pair.encoder", "--data", "x.npz", *QUICK)
    assert run(*words, "--quiet", "--out", "s.safetensors") == (0, "", "")
    assert load_sampler("s.safetensors").shape == (2,)


def test_fit_chooses_what_the_encoder_returns_and_its_precision(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_models_d.py").write_text(
        "import torch\n"
        "linear = torch.nn.Linear(6, 2)\n"
        "def encoder(x):\n"
        "    z = linear(x)\n"
        "    return {'first': z, 'other': x, 'second': [z[:, :1].double(), x]}\n"
    )
    write_array("x.npy", torch.arange(300.0).square().sin().view(50, 6))
    words = ("fit", "--encoder", "my_models_d:encoder", "--data", "x.npy", *QUICK, "--quiet")
    assert run(*words, "--out", "s.safetensors")[0] == 1
    shapes = {"first": (2,), "0": (2,), "second.0": (1,), "second.1": (6,)}
    for choice, shape in shapes.items():
        assert run(*words, "--output", choice, "--out", "s.safetensors") == (0, "", "")
        sampler = load_sampler("s.safetensors")
        assert sampler.shape == shape
        assert sampler.dtype == (torch.float64 if choice == "second.0" else torch.float32)
    words = (*words, "--output", "second.0", "--autocast")
    assert run(*words, "bfloat16", "--out", "s.safetensors") == (0, "", "")
    assert load_sampler("s.safetensors").dtype == torch.float32
    assert "'bfloat16' or 'float16'" in run(*words, "int8", "--out", "s.safetensors")[2]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
def test_sample_writes_what_the_api_draws(run, tmp_path, suffix):
    out = str(tmp_path / f"new{suffix}")
    assert run("sample", "flow.safetensors", "-n", "7", "--seed", "3", "--out", out) == (0, "", "")
    assert torch.equal(read_array(out), load_sampler("flow.safetensors").sample(7, seed=3))


def test_sample_without_a_seed_draws_anew(run, tmp_path):
    for name in ("a.npy", "b.npy"):
        assert run("sample", "flow.safetensors", "-n", "5", "--out", str(tmp_path / name))[0] == 0
    assert not torch.equal(read_array(tmp_path / "a.npy"), read_array(tmp_path / "b.npy"))


def test_score_prints_or_writes_what_the_api_computes(run, tmp_path):
    expected = load_sampler("flow.safetensors").log_prob(read_array("latents.npy"))
    code, out, err = run("score", "flow.safetensors", "--latents", "latents.npy")
    assert (code, err) == (0, "")
    assert [float(line) for line in out.splitlines()] == expected.tolist()
    target = str(tmp_path / "scores.npy")
    words = ("score", "flow.safetensors", "--latents", "latents.npy", "--out", target)
    assert run(*words) == (0, "", "")
    assert torch.equal(read_array(target), expected)


def test_info_prints_json_or_a_table(run):
    code, out, err = run("info", "flow.safetensors", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts == json.loads(json.dumps(load_sampler("flow.safetensors").info))
    code, out, err = run("info", "flow.safetensors")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert {line.split()[0] for line in lines if not line.startswith(" ")} == facts.keys()
    assert lines[0].split() == ["method", "realnvp"]
    assert ["shape", "3"] in [line.split() for line in lines]
    options = [line.split() for line in lines[lines.index("options") + 1 :]]
    assert ["steps", "20"] in options[: len(facts["options"])]


def test_info_shows_what_is_nested(run, tmp_path):
    facts = {
        "method": "a",
        "fit": {"best_step": 10, "deep": {"x": None, "share": 1 / 3}, "nothing": {}},
        "ranking": [{"method": "gmm", "c2st": 0.5}, {"method": "kde", "error": "no"}],
        "shape": [4, 5],
        "steering": "\x1b[31mred\nline",
    }
    write_tensors(tmp_path / "s.safetensors", {"x": torch.zeros(1)}, {"info": facts})
    code, out, err = run("info", str(tmp_path / "s.safetensors"))
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "method    a",
        "shape     4,5",
        r"steering  \x1b[31mred\nline",
        "fit",
        "  best_step  10",
        "  nothing    none",
        "  deep",
        "    share  0.333333",
        "    x      none",
        "ranking",
        "  method  c2st  error",
        "  gmm     0.5",
        "  kde           no",
    ]


def test_samplers_lists_names_and_origins(run):
    names = [info.name for info in latentfit.list_samplers()]
    assert {"realnvp", "spline", "wgan-gp"} <= set(names)
    code, out, err = run("samplers")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == names
    code, out, err = run("samplers", "--json")
    assert (code, err) == (0, "")
    assert [entry["name"] for entry in json.loads(out)] == names
    assert json.loads(out)[0].keys() == {"name", "value", "distribution", "version", "error"}


def test_samplers_describes_one(run):
    code, out, err = run("samplers", "wgan-gp", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["name"] == "wgan-gp"
    assert facts["summary"].startswith("Wasserstein GAN")
    assert facts["has_density"] is False
    assert facts["distribution"] == f"latentfit {latentfit.__version__}"
    options = {option["name"]: option for option in facts["options"]}
    assert options["penalty"] == {
        "name": "penalty",
        "default": 0.1,
        "required": False,
        "expects": "float >= 0",
        "help": describe_options(load_sampler_class("wgan-gp"))["penalty"].help,
    }
    code, out, err = run("samplers", "wgan-gp")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    top, facts_, table = out.split("\n\n")
    assert top.startswith("wgan-gp: Wasserstein GAN")
    assert "density     no: it only draws samples" in facts_.splitlines()
    header, *rows = table.splitlines()
    assert header.split() == ["option", "default", "expected", "what", "it", "does"]
    starts = [header.index(word) for word in ("default", "expected", "what")]
    first = [row for row in rows if not row.startswith(" ")]
    assert [row.split()[0] for row in first] == list(options)
    for row in first:
        cells = [row[i:j].strip() for i, j in zip([0, *starts], [*starts, None], strict=True)]
        assert options[cells[0]]["help"].replace("``", "").startswith(cells[3])
        assert all(cells)


@pytest.mark.parametrize("columns", [40, 120, 200])
def test_the_table_of_options_fits_the_terminal(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = run("samplers", "realnvp")
    widest = max(map(len, out.splitlines()))
    assert widest <= max(
        columns, 80
    )  # the last column keeps some room, however narrow the terminal
    assert widest > min(columns, 80) * 0.7
    _, facts, _ = run("samplers", "realnvp", "--json")
    last = {o["help"].split()[-1] for o in json.loads(facts)["options"]}
    assert last <= set(out.replace('"', " ").split()) | set(out.split())


def test_samplers_describes_what_has_no_default_no_help_and_no_options(run, installed):
    source = (
        "from latentfit.plugin import Sampler\n"
        "class Bare(Sampler):\n"
        "    conditions = ('vector',)\n"
        "    def build(self, dim, n): pass\n"
        "    def fit(self, rows, held_out, run): pass\n"
        "    def sample(self, n, generator, context=None): pass\n"
        "class Needy(Bare):\n"
        "    def __init__(self, *, size: int, flag: bool = False): super().__init__()\n"
    )
    entries = {"bare": "bare_dist:Bare", "needy": "bare_dist:Needy"}
    installed("bare_dist", "latentfit.samplers", entries, source)
    code, out, _ = run("samplers", "bare")
    assert code == 0
    assert out.splitlines() == [
        "bare:",
        "",
        "from        bare_dist 1.0",
        "density     no: it only draws samples",
        "conditions  vector",
        "",
        "No options.",
    ]
    code, out, _ = run("samplers", "needy")
    assert out.splitlines()[-2:] == [
        "size    (required)  int       -",
        "flag    False       bool      -",
    ]
    code, out, _ = run("samplers", "needy", "--json")
    assert json.loads(out)["options"][0]["required"] is True


def test_samplers_describes_auto(run):
    code, out, err = run("samplers", "auto")
    assert (code, err) == (0, "")
    assert "methods" in out
    assert "metric" in out


def test_samplers_check_exits_with_1_if_one_is_broken(run, monkeypatch):
    told = [latentfit.PluginInfo(name, "a:B", "dist", "1.0") for name in "ab"]
    calls = []

    def listed(*, check=False):
        calls.append(check)
        return told

    monkeypatch.setattr("latentfit.registry.list_samplers", listed)
    code, out, err = run("samplers", "--check")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["a", "a:B", "dist", "1.0"]
    told.append(latentfit.PluginInfo("c", "c:D", "dist", "1.0", "importing it raised X"))
    code, out, _ = run("samplers", "--check")
    assert code == 1
    assert out.splitlines()[-1].endswith("broken: importing it raised X")
    code, out, _ = run("samplers", "--check", "--json")
    assert code == 1
    assert [info["error"] for info in json.loads(out)] == [None, None, "importing it raised X"]
    assert run("samplers")[0] == 0
    assert calls == [True, True, True, False]


def test_check_runs_the_suite_on_a_class_in_the_current_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_checked_a.py").write_text(
        "import torch\n"
        "from latentfit.plugin import Sampler\n"
        "class Uniform(Sampler):\n"
        "    def __init__(self, *, width: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.width = width\n"
        "    def build(self, dim, n): self.register_buffer('edge', torch.zeros(dim))\n"
        "    def fit(self, rows, held_out, run): self.edge.copy_(self.width * rows.abs().amax(0))\n"
        "    def sample(self, n, generator):\n"
        "        return self.edge * (2 * torch.rand(n, len(self.edge), generator=generator) - 1)\n"
    )
    checks = ("constructor_only_stores", "log_prob_integrates_to_one", "options_are_declared")
    words = ("check", "my_checked_a:Uniform", "-o", "width=2", *(f"--only={c}" for c in checks))
    code, out, err = run(*words)
    assert (code, err) == (1, "")  # its option is not described, and it has no density
    lines = [line.split() for line in out.splitlines() if line and not line.startswith(" ")]
    status = {line[0]: line[1] for line in lines[:-1]}
    assert status == {
        "options_are_declared": "FAILED",
        "constructor_only_stores": "ok",
        "log_prob_integrates_to_one": "skipped",
    }
    assert "Expected the option 'width' of Uniform to be described" in " ".join(out.split())
    assert "my_checked_a:Uniform: 1 passed, 1 failed, 1 skipped, in" in out
    code, out, _ = run(*words, "--json")
    results = {result["name"]: result for result in json.loads(out)["results"]}
    assert code == 1
    assert {name: result["status"] for name, result in results.items()} == {
        "options_are_declared": "failed",
        "constructor_only_stores": "passed",
        "log_prob_integrates_to_one": "skipped",
    }
    assert run("check", "my_checked_a:Uniform", "--only", checks[0])[0] == 0


def test_check_passes_options_on(run):
    code, _, err = run("check", "wgan-gp", "-o", "penalty=-1", "--only", "options_are_declared")
    assert code == 1
    assert "Option 'penalty' of 'wgan-gp': expected float >= 0; got -1" in err


def test_new_plugin_writes_a_project_and_says_what_is_next(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("new-plugin", "shape-shifter")
    assert (code, err) == (0, "")
    assert "pip install -e './shape-shifter[test]'\n  pytest ./shape-shifter" in out
    assert Path("shape-shifter/latentfit_shape_shifter.py").is_file()
    code, out, err = run("new-plugin", "other-one", "--dir", str(tmp_path))
    assert f"pytest {tmp_path / 'other-one'}\n" in out


@pytest.fixture
def conditional(folder, tmp_path) -> dict[str, str]:
    """Samplers of latents with labels: two classes that lie apart, and a vector that moves the mean."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(300, 2, generator=generator)
    classes = torch.arange(300) % 2 * 4 + 3  # 3 and 7
    vectors = torch.randn(300, 2, generator=generator)
    write_array(tmp_path / "c.npy", classes)
    write_array(tmp_path / "v.npy", vectors)
    write_array(tmp_path / "zc.npy", noise + 10 * classes[:, None])
    write_array(tmp_path / "zv.npy", noise + 10 * vectors)
    files = {}
    for kind in "cv":
        files[kind] = str(tmp_path / f"{kind}.safetensors")
        words = ("--latents", str(tmp_path / f"z{kind}.npy"), "--condition")
        words += (str(tmp_path / f"{kind}.npy"), "--out", files[kind], "--quiet")
        assert main(["fit", *words, "-o", "steps=150", "-o", "layers=2", "-o", "components=2"]) == 0
    return files


def test_conditions_are_read_from_words_and_files(run, conditional, tmp_path):
    one, many = load_sampler(conditional["c"]), load_sampler(conditional["v"])
    write_array(tmp_path / "asked.npy", torch.tensor([3, 7, 7, 3]))
    write_array(tmp_path / "moved.npy", torch.tensor([[0.5, -1.0], [1.0, 2.0]]))
    cases = [
        ("c", 5, "7", 7),
        ("c", 4, str(tmp_path / "asked.npy"), torch.tensor([3, 7, 7, 3])),
        ("c", 4, "3,7,7,3", torch.tensor([3, 7, 7, 3])),
        ("v", 3, "0.5,-1", torch.tensor([0.5, -1.0])),
        ("v", 3, " 1, 2,", torch.tensor([1, 2])),
        ("v", 2, str(tmp_path / "moved.npy"), torch.tensor([[0.5, -1.0], [1.0, 2.0]])),
    ]
    for kind, n, text, condition in cases:
        sampler = one if kind == "c" else many
        out = str(tmp_path / "drawn.npy")
        words = ("-n", str(n), "--seed", "4", "--condition", text, "--out", out)
        assert run("sample", conditional[kind], *words) == (0, "", ""), text
        drawn = sampler.sample(n, seed=4, condition=condition)
        assert torch.equal(read_array(out), drawn)
        code, told, _ = run("score", conditional[kind], "--latents", out, "--condition", text)
        assert code == 0
        expected = sampler.log_prob(drawn, condition=condition)
        assert [float(line) for line in told.splitlines()] == expected.tolist()
    assert abs(float(one.sample(50, seed=0, condition=7).mean()) - 70) < 5


@pytest.mark.parametrize(
    "kind, condition, told, code",
    [
        ("c", "5", "one of the classes 3, 7", 1),
        ("c", "0.5,1", "one of the classes 3, 7", 1),
        ("c", "three", "Expected --condition as a class (3), a vector", 2),
        ("c", ",", "Expected --condition as a class (3), a vector", 2),
        ("c", "no.npy", "there is no such file", 1),
        ("v", "1,2,3", "a vector of 2 numbers", 1),
    ],
)
def test_conditions_that_do_not_fit_are_refused(run, conditional, kind, condition, told, code):
    words = ("-n", "2", "--out", "never.npy", "--condition", condition)
    got, out, err = run("sample", conditional[kind], *words)
    assert (got, out) == (code, "")
    assert told in err
    assert "Traceback" not in err


FIT = ("fit", "--latents", "latents.npy", "--out", "never.safetensors")


@pytest.mark.parametrize(
    "words, told",
    [
        ((), "Commands:"),
        (("nope",), "No such command 'nope'"),
        (("fit",), "--out"),
        (("fit", "--out", "s"), "either --latents FILE, or --encoder and --data"),
        ((*FIT, "--encoder", "a:b", "--data", "x"), "either --latents FILE"),
        ((*FIT, "--data", "latents.npy"), "either --latents FILE"),
        (("fit", "--encoder", "a:b", "--out", "s"), "either --latents FILE"),
        ((*FIT, "-o", "layers"), "Expected -o NAME=VALUE; got 'layers'"),
        ((*FIT, "-o", "=3"), "Expected -o NAME=VALUE; got '=3'"),
        ((*FIT, "-o", "layers=1", "-o", "layers=2"), "got 'layers' twice"),
        ((*FIT, "-o", "seed=1"), "'seed' is no option of a method"),
        ((*FIT, "--seed", "one"), "Invalid value for '--seed'"),
        (("sample", "flow.safetensors", "--out", "a.npy"), "-n"),
        (("score", "flow.safetensors"), "--latents"),
        (("bench",), "Tasks:"),
        (("samplers", "realnvp", "--check"), "either a METHOD or --check"),
        (("check",), "METHOD"),
        (("check", "realnvp", "--only", "nope"), "Expected --only as one of options_are_declared"),
        (("check", "realnvp", "-o", "layers"), "Expected -o NAME=VALUE; got 'layers'"),
        (("check", "json:JSONDecoder"), "subclass of latentfit.plugin.Sampler; got <class"),
        (("check", "no_such_module:X"), "Expected METHOD to name a module that is installed"),
        (("check", ":X"), "Expected METHOD as MODULE:ATTRIBUTE; got ':X'"),
        (("new-plugin",), "NAME"),
        (("bench", "digit"), "Unknown benchmark 'digit'; installed: digits, mnist"),
    ],
)
def test_usage_errors_exit_with_2(run, words, told):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "name, told",
    [
        ("encoder", "MODULE:ATTRIBUTE; got 'encoder'"),
        ("module:", "MODULE:ATTRIBUTE; got 'module:'"),
        ("no_such_module:x", "there is no 'no_such_module'"),
        ("no_such.module:x", "there is no 'no_such'"),
        ("json:nope", "json has no 'nope'"),
    ],
)
def test_encoders_that_are_not_there(run, name, told):
    code, out, err = run(
        "fit", "--encoder", name, "--data", "latents.npy", "--out", "never.safetensors"
    )
    assert (code, out) == (2, "")
    assert told in err


ERRORS = [
    (("fit", "--latents", "no.npy", "--out", "never.safetensors"), "no.npy"),
    (("fit", "--latents", "latents.npy", "--out", "never.npz"), "a .safetensors file to write"),
    ((*FIT[:-1], "nowhere/s.safetensors"), "there is no"),
    ((*FIT[:-1], "."), "is a folder"),
    ((*FIT, "--method", "realnpv"), "Did you mean 'realnvp'?"),
    ((*FIT, "-o", "layerz=3"), "Did you mean 'layers'?"),
    ((*FIT, "-o", "layers=many"), "expected int in [1, 1000]; got 'many'"),
    ((*FIT, "-o", "layers=0"), "expected int in [1, 1000]; got 0"),
    ((*FIT, "--validation", "2"), "validation"),
    ((*FIT, "--batch-size", "0"), "batch_size"),
    ((*FIT, "--transform", "nope"), "transform"),
    ((*FIT, "--device", "nope"), "device"),
    ((*FIT, "--seed", "-1"), "seed"),
    ((*FIT, "--max-seconds", "0"), "max_seconds"),
    (("sample", "no.safetensors", "-n", "2", "--out", "never.npy"), "no.safetensors"),
    (("sample", "latents.npy", "-n", "2", "--out", "never.npy"), "latents.npy: expected"),
    (("sample", "flow.safetensors", "-n", "-2", "--out", "never.npy"), "got -2"),
    (("sample", "flow.safetensors", "-n", "2", "--out", "never.csv"), "never.csv"),
    (("score", "flow.safetensors", "--latents", "flow.safetensors"), "among several"),
    (("score", "gan.safetensors", "--latents", "latents.npy"), "no density"),
    (("score", "flow.safetensors", "--latents", "latents.npy", "--out", "a/b.npy"), "no"),
    (("info", "."), "."),
    (("samplers", "nope"), "Unknown sampler 'nope'"),
    (("check", "nope"), "Unknown sampler 'nope'"),
    (("new-plugin", "realnvp"), "'realnvp' is a sampler of latentfit"),
    (("new-plugin", "My_Sampler"), "such as 'my-sampler'; got 'My_Sampler'"),
    (("new-plugin", "mine", "--dir", "nowhere"), "there is no nowhere"),
    ((*FIT, "--condition", "no.npy"), "no.npy"),
    ((*FIT, "--condition", "never.safetensors"), "the input"),
    (("score", "flow.safetensors", "--latents", "latents.npy", "--condition", "3"), "condition"),
]


@pytest.mark.parametrize("words, told", ERRORS)
def test_errors_exit_with_1_and_one_line(run, words, told):
    before = sorted(os.listdir())
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert told in err
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("words", [("--debug", "info", "no"), ("info", "no", "--debug")])
def test_debug_shows_the_traceback_before_and_after_a_command(run, words):
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("Error: ")


def test_an_encoder_that_fails_is_told_in_one_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_array("x.npy", torch.ones(4, 2))
    Path("my_models_b.py").write_text("def encoder(x):\n    raise RuntimeError('two\\nlines')\n")
    Path("my_models_c.py").write_text("import a_library_that_is_not_there\n")
    words = ("--data", "x.npy", "--out", "s.safetensors")
    code, _, err = run("fit", "--encoder", "my_models_b:encoder", *words)
    note = "(while the encoder was given batch 0, (4, 2) torch.float32)"
    assert (code, err) == (1, f"Error: RuntimeError: two lines {note} (--debug shows where)\n")
    code, _, err = run("fit", "--encoder", "my_models_c:encoder", *words)
    assert code == 1
    told = "Error: Expected --encoder to name a module that can be imported; importing 'my_models_c' raised "
    assert err.startswith(f"{told}ModuleNotFoundError: No module named 'a_library_that_is_not_ther")
    code, _, err = run("fit", "--debug", "--encoder", "my_models_c:encoder", *words)
    assert "my_models_c.py" in err.partition(told)[0]
    Path("my_broken_models.py").write_text("raise ValueError('two\\nlines')\n")
    code, _, err = run("fit", "--encoder", "my_broken_models:encoder", *words)
    assert code == 1
    assert err.endswith(
        "importing 'my_broken_models' raised ValueError: two lines (--debug shows where)\n"
    )
    code, _, err = run("fit", "--encoder", "torch.nn:Linear", *words)
    assert code == 1
    assert "got the class Linear" in err


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install distributions that are nothing but metadata and one module."""

    def install(name: str, group: str, entries: dict[str, str], source: str = "") -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    return install


CHATTY = """
import os, sys, warnings
import torch
from latentfit.plugin import Sampler

def talk(where):
    print("noise of", where)
    sys.stdout.write("more noise")
    warnings.warn("a warning of " + where)

talk("the import")

class Chatty(Sampler):
    '''A normal distribution that talks.'''

    has_density = True

    def __init__(self):
        super().__init__()
        talk("the constructor")

    def build(self, dim, n):
        talk("build")
        self.register_buffer("mean", torch.zeros(dim))

    def fit(self, rows, held_out, run):
        talk("fit")
        run.once("first", lambda: {}, lambda _: None)
        if os.environ.get("CHATTY_FAILS"):
            raise RuntimeError("\x1b[31mred\x1b[0m")

    def sample(self, n, generator):
        talk("sample")
        return self.mean + torch.randn(n, len(self.mean), generator=generator)

    def log_prob(self, rows):
        talk("log_prob")
        return torch.distributions.Normal(self.mean, 1.0).log_prob(rows).sum(1)
"""


@pytest.mark.filterwarnings("ignore:a warning of")
def test_stdout_has_results_only_whatever_a_plugin_prints(run, installed, monkeypatch):
    monkeypatch.delitem(sys.modules, "chatty_dist", raising=False)
    installed("chatty_dist", "latentfit.samplers", {"chatty": "chatty_dist:Chatty"}, CHATTY)
    only = ("--only", "constructor_only_stores", "--only", "seed_decides_the_samples", "--json")
    for words in (
        ("samplers", "chatty", "--json"),
        ("samplers", "--json"),
        ("check", "chatty", *only),
        ("check", "chatty_dist:Chatty", *only),
    ):
        monkeypatch.delitem(sys.modules, "chatty_dist", raising=False)
        _, out, err = run(*words)
        assert json.loads(out)
        assert ("noise of the import" in err) == ("chatty" in words[1]), words
    assert (
        run("fit", "--latents", "latents.npy", "-m", "chatty", "--out", "chatty.safetensors")[0]
        == 0
    )
    code, out, err = run("score", "chatty.safetensors", "--latents", "latents.npy")
    assert code == 0
    assert len([float(line) for line in out.splitlines()]) == 400
    assert "noise of log_prob" in err


@pytest.mark.filterwarnings("ignore:a warning of")
@pytest.mark.parametrize(
    "name",
    ["../../up", "/tmp/latentfit-absolute", "..", "a/b", "CON", "long" * 80, "*[a]?", "\u202eé"],
)
def test_a_methods_name_is_no_path(run, installed, tmp_path, monkeypatch, name):
    monkeypatch.delitem(sys.modules, "chatty_dist", raising=False)
    monkeypatch.setattr("latentfit.checkpoint.SECONDS", 0.0)
    installed("chatty_dist", "latentfit.samplers", {name: "chatty_dist:Chatty"}, CHATTY)
    latents = str(Path("latents.npy").resolve())
    work = tmp_path / "above" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)

    def files():
        return {path for path in (tmp_path / "above").rglob("*") if path.is_file()}

    words = ("fit", "--latents", latents, "-m", name, "--checkpoint", "c", "--out", "s.safetensors")
    monkeypatch.setenv("CHATTY_FAILS", "1")
    code, _, err = run(*words)
    assert code == 1
    assert "\x1b" not in err
    (kept,) = files()
    assert kept.parent == work / "c"
    assert kept.name.endswith(".checkpoint.safetensors")
    monkeypatch.delenv("CHATTY_FAILS")
    assert run(*words)[0] == 0
    assert files() == {work / "s.safetensors"}
    assert not Path("/tmp/latentfit-absolute.checkpoint.safetensors").exists()
    code, out, _ = run("samplers")
    assert code == 0
    assert len(out.splitlines()) == len(latentfit.list_samplers())
    assert all(line.isprintable() for line in out.splitlines())


def test_a_benchmark_of_somebody_else(run, installed):
    source = (
        "import click\n"
        "@click.command()\n"
        "@click.option('--code', type=int, default=0)\n"
        "def command(code):\n"
        "    '''Say hello.'''\n"
        "    click.echo('hello')\n"
        "    click.get_current_context().exit(code)\n"
    )
    installed("hello_bench", "latentfit.benchmarks", {"hello": "hello_bench:command"}, source)
    code, out, _ = run("bench", "-h")
    assert code == 0
    assert "hello   hello_bench 1.0" in out
    assert run("bench", "hello") == (0, "hello\n", "")
    assert run("bench", "hello", "--code", "4")[0] == 4
    assert "Say hello." in run("bench", "hello", "-h")[1]


def test_broken_plugins_are_told_when_they_are_used_and_break_no_other(run, installed):
    group = "latentfit.benchmarks"
    installed("broken_bench", group, {"broken": "broken_bench:x"}, "import a_missing_library")
    installed("wrong_bench", group, {"wrong": "wrong_bench:x"}, "x = 3")
    code, out, _ = run("bench", "-h")
    assert code == 0
    assert "broken_bench 1.0" in out
    for name in ("broken", "wrong"):
        code, out, err = run("bench", name)
        assert (code, out) == (1, "")
        assert f"{name}_bench 1.0" in err
        assert err.count("\n") == 1


def test_two_samplers_of_one_name_are_listed_with_both_owners(run, installed):
    for name in ("first_owner", "second_owner"):
        installed(name, "latentfit.samplers", {"twice": f"{name}:x"})
    code, out, _ = run("samplers")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("twice")]
    assert len(lines) == 2
    assert all("first_owner 1.0 and second_owner 1.0" in line for line in lines)
    code, _, err = run(*FIT, "--method", "twice")
    assert code == 1
    assert "first_owner 1.0 and second_owner 1.0" in err


def test_listing_imports_no_plugin(run_python):
    code = (
        "import sys; from latentfit.cli import main\n"
        "for words in ('--help',), ('bench', '-h'), ('samplers',), ('bench', 'nope'):\n"
        "    main(words)\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'latentfit_bench', 'latentfit_gan', 'nflows', 'normflows', 'sklearn'}"
    )
    run_python("-c", code)


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_leaves_no_file(folder, tmp_path):
    latents = str(folder / "latents.npy")
    words = ("fit", "--latents", latents, "--validation", "0", "-o", "steps=100000000")
    process = start(*words, "--progress", "--out", "s.safetensors", cwd=tmp_path, bufsize=0)
    seen = ""
    # The training's bar, drawn twice: tqdm before 4.70 tells of one that Ctrl-C met in the making.
    while seen.count("realnvp") < 2:
        part = process.stderr.read(1)
        assert part, seen
        seen += part
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted." in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_closed_pipe_is_no_traceback(folder, tmp_path):
    np.save(tmp_path / "many.npy", np.zeros((40_000, 3), dtype=np.float32))
    words = ("score", str(folder / "flow.safetensors"), "--latents", "many.npy")
    with start(*words, cwd=tmp_path) as process:
        assert float(process.stdout.readline()) < 0
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.slow
def test_a_sampler_draws_and_scores_the_same_in_another_process(folder, tmp_path):
    for method in ("flow", "gan"):
        file = str(folder / f"{method}.safetensors")
        words = ("sample", file, "-n", "100", "--seed", "5", "--out", f"{method}.npy")
        process = start(*words, cwd=tmp_path)
        assert process.communicate(timeout=60) == ("", "")
        assert torch.equal(
            read_array(tmp_path / f"{method}.npy"), load_sampler(file).sample(100, seed=5)
        )


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--latents", "latents.npy", "--out", "latents.npy"),
        ("sample", "flow.safetensors", "-n", "3", "--out", "flow.safetensors"),
        ("score", "flow.safetensors", "--latents", "latents.npy", "--out", "latents.npy"),
    ],
)
def test_an_input_is_not_written_over(run, folder, words):
    before = (folder / words[-1]).read_bytes()
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert "Expected another file to write than the input" in err
    assert (folder / words[-1]).read_bytes() == before


def test_a_module_that_ends_the_process_is_told(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends_at_once.py").write_text("raise SystemExit(3)\n")
    code, out, err = run("check", "ends_at_once:Sampler")
    assert (code, out) == (1, "")
    assert "importing 'ends_at_once' raised SystemExit: 3" in err
