"""The command line on streams that are closed, full, broken or narrow, for every command that prints."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from latentfit import LatentStore, fit_latent_sampler, load_sampler
from latentfit.arrays import read_array, write_array
from latentfit.cli import cli, main

# Runs command lines in forks of itself, each with streams of its own; first each once in itself, so that all
# is imported and the forks take no time.
RUNNER = r"""
import contextlib, io, json, os, sys
from latentfit.cli import main

def lead(number, name, kind):
    if kind == "closed":
        os.close(number)
        setattr(sys, name, None)
        return
    if kind == "broken":
        ends = os.pipe()
        kept, other = ends if name == "stdin" else ends[::-1]
        os.close(other)
    else:
        kept = os.open(kind, os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_CREAT, 0o666)
    os.dup2(kept, number)
    old = getattr(sys, name)
    binary = os.fdopen(number, "rb" if name == "stdin" else "wb", closefd=False)
    setattr(sys, name, io.TextIOWrapper(binary, encoding=old.encoding, errors=old.errors))

def run(words):
    sys.argv = ["latentfit", *(os.fsdecode(word.encode("latin-1")) for word in words)]
    return main()

with open(sys.argv[1], encoding="utf-8") as file:
    cases = json.load(file)
os.chdir(sys.argv[2])
sys.path.insert(0, "")
for words in {tuple(case["words"]): 0 for case in cases}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(words)
for case in cases:
    child = os.fork()
    if not child:
        code = 99
        try:
            for number, name in ((2, "stderr"), (1, "stdout"), (0, "stdin")):
                lead(number, name, case[name])
            try:
                code = run(case["words"])
            except SystemExit as end:
                code = end.code
            sys.stdout.flush()  # as the interpreter does at its end
            sys.stderr.flush()
        except OSError:
            code = 120
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """What became of a command line; None for what went to no file."""

    code: int
    out: str | None
    err: str | None


Case = tuple[Sequence[str], Mapping[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with latents.npy, a sampler of them, and a sampler's class that talks."""
    folder = tmp_path_factory.mktemp("streams")
    latents = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    write_array(folder / "latents.npy", latents)
    fit_latent_sampler(None, latents, method="gaussian").save(folder / "s.safetensors")
    return folder


@pytest.fixture
def run_all(folder: Path, tmp_path: Path) -> Callable[..., list[Done]]:
    """Run command lines in that folder, one after another, with the streams and variables of each."""

    def run_all(cases: Sequence[Case], **environment: str) -> list[Done]:
        told = []
        for number, (words, differences) in enumerate(cases):
            case: dict[str, Any] = {
                "stdin": os.devnull,
                "stdout": str(tmp_path / f"{number}.out"),
                "stderr": str(tmp_path / f"{number}.err"),
            }
            told.append(
                case
                | {"words": [os.fsencode(word).decode("latin-1") for word in words]}
                | differences
            )
        (tmp_path / "cases.json").write_text(json.dumps(told))
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [sys.executable, "-c", RUNNER, str(tmp_path / "cases.json"), str(folder)],
            env=kept | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr

        def text(path: Path) -> str | None:
            return path.read_bytes().decode("utf-8", "backslashreplace") if path.exists() else None

        return [
            Done(int(code), text(tmp_path / f"{number}.out"), text(tmp_path / f"{number}.err"))
            for number, code in enumerate(done.stdout.split())
        ]

    return run_all


PRINTING = [
    ("--version",),
    ("bench", "-h"),
    ("check", "gaussian", "--only", "options_are_declared"),
    ("diagnose", "latents.npy"),
    ("evaluate", "s.safetensors", "--data", "latents.npy", "-n", "16", "--out", "page.html"),
    ("fit", "--latents", "latents.npy", "-m", "gaussian", "--out", "new.safetensors"),
    ("info", "s.safetensors", "--json"),
    ("report", "-h"),
    ("samplers", "gaussian"),
    ("score", "s.safetensors", "--latents", "latents.npy"),
]
SAMPLE = ("sample", "s.safetensors", "-n", "3", "--seed", "1", "--out", "drawn.npy")
WRONG = [(("info", "nothing"), 1), (("fit",), 2), (("bench", "nothing"), 2)]


def test_every_command_is_looked_at() -> None:
    named = {words[0] for words in (*PRINTING, SAMPLE)}
    assert set(cli.commands) - named == {"new-plugin"}  # its folder is made once only


def test_a_stdout_that_is_full_broken_or_closed(run_all: Callable[..., list[Done]]) -> None:
    kinds = ["/dev/full", "broken", "closed"]
    cases = [(words, {"stdout": kind}) for kind in kinds for words in (*PRINTING, SAMPLE)]
    for (words, streams), done in zip(cases, run_all(cases), strict=True):
        said, kind = (words, streams, done), streams["stdout"]
        assert done.err is not None
        if kind == "/dev/full" and words is not SAMPLE:
            assert done.code == 1, said
            assert done.err.startswith("Error: No space left on device"), said
            assert done.err.count("\n") == 1, said
        else:
            assert done.code == (kind == "broken" and words is not SAMPLE), said
            assert done.err == "", said


def test_a_stdin_or_stderr_that_cannot_be_used(
    run_all: Callable[..., list[Done]], folder: Path
) -> None:
    score = PRINTING[-1]
    odd: list[dict[str, str]] = [
        {},
        {"stdin": "closed"},
        {"stdin": "broken"},
        {"stderr": "closed"},
        {"stderr": "/dev/full"},
        {"stderr": "broken"},
    ]
    done = run_all([(score, streams) for streams in odd])
    assert {one.code for one in done} == {0}
    assert len({one.out for one in done}) == 1
    assert len(str(done[0].out).splitlines()) == 200

    nothing = dict.fromkeys(("stdin", "stdout", "stderr"), "closed")
    fit = (
        *next(words for words in PRINTING if words[0] == "fit")[:-1],
        "closed.safetensors",
        "--progress",
    )
    unheard = [(words, kind) for words in WRONG for kind in ("/dev/full", "broken", "closed")]
    fitted, *failed = run_all(
        [(fit, nothing), *((words, {"stderr": kind}) for (words, _), kind in unheard)]
    )
    assert fitted.code == 0
    closed, plain = (folder / f"{name}.safetensors" for name in ("closed", "s"))
    assert torch.equal(
        load_sampler(closed).sample(4, seed=0), load_sampler(plain).sample(4, seed=0)
    )
    assert [one.code for one in failed] == [code for (_, code), _ in unheard]


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=lambda environment: "-".join(environment.values()),
)
def test_any_name_in_any_locale(
    run_all: Callable[..., list[Done]], folder: Path, environment: dict[str, str]
) -> None:
    odd = f"é€😀\n{len(list(folder.iterdir()))}"
    there = folder / odd
    there.mkdir()
    for suffix in (".npy", ".safetensors", ".pt"):
        write_array(there / f"z{suffix}", read_array(folder / "latents.npy"))
    (there / "s.safetensors").write_bytes((folder / "s.safetensors").read_bytes())
    source = "def encoder(x):\n    print('é€😀')\n    return x[:, :2]\n"
    (folder / "talking.py").write_text(source, encoding="utf-8")
    sampler, latents, store = f"{odd}/s.safetensors", f"{odd}/z.npy", f"{odd}/store"
    fit = ("fit", "--encoder", "talking:encoder", "--data", latents, "--store", store)
    sample = ("sample", sampler, "-n", "2", "--out")
    cases = [
        ("bench", "digits", "-h"),
        ("diagnose", f"{odd}/z.safetensors", "--json"),
        ("diagnose", f"{odd}/z.pt", "--figure", f"{odd}/f.svg"),
        ("info", sampler),
        ("score", sampler, "--latents", latents),
        *((*sample, f"{odd}/d{suffix}") for suffix in (".npz", ".safetensors", ".pt")),
        (*fit, "-m", "gaussian", "--out", f"{odd}/new.safetensors"),
        ("diagnose", store),
    ]
    wrong = [("info", f"{odd}/x"), ("bench", odd), ("samplers", odd), ("check", f"{odd}:{odd}")]
    done = run_all([(words, {}) for words in (*cases, *wrong)], **environment)
    for words, one in zip((*cases, *wrong), done, strict=True):
        assert "Unicode" not in str(one.err), (words, one)
        assert "Traceback" not in str(one.err), (words, one)
    assert [one.code for one in done] == [0] * len(cases) + [1, 2, 1, 2]
    for suffix in (".npz", ".safetensors", ".pt"):
        assert read_array(there / f"d{suffix}").shape == (2, 3)
    assert len(LatentStore(there / "store")) == 200


def test_json_is_alone_on_stdout_whatever_prints_and_warns(tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(
        "import warnings\n"
        "from latentfit.plugin import Sampler\n"
        "def talk():\n    print('noise')\n    warnings.warn('beware')\n"
        "talk()\n"
        "class Chatty(Sampler):\n"
        "    def __init__(self):\n        super().__init__()\n        talk()\n"
        "    def build(self, dim, n): talk()\n"
        "    def fit(self, rows, held_out, run): talk()\n"
        "    def sample(self, n, generator): raise ValueError('none')\n"
    )
    words = ("check", "chatty:Chatty", "--only", "few_rows_are_handled", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "latentfit", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1  # it draws nothing
    assert json.loads(done.stdout)["results"][0]["status"] == "failed"
    assert done.stderr.count("noise") > 3  # the import, the constructor, build, fit
    assert "UserWarning: beware" in done.stderr


def test_a_name_that_is_no_unicode_is_refused_in_words_or_works(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / os.fsdecode(b"\xff")
    there.mkdir()
    latents, sampler = str(there / "z.npy"), str(there / "s.safetensors")
    write_array(latents, read_array(folder / "latents.npy"))
    assert main(["fit", "--latents", latents, "-m", "gaussian", "--out", sampler]) == 0
    assert main(["info", sampler]) == 0
    write_array(there / "z.safetensors", read_array(latents))
    capsys.readouterr()
    assert main(["diagnose", str(there / "z.safetensors")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: Expected ")
    # safetensors opens no other: new and old versions
    assert "not valid UTF-8" in err or "surrogates not allowed" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "variables",
    [
        {"COLUMNS": "1"},
        {"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"},
        {"COLUMNS": "0", "TERM": ""},
        {"COLUMNS": "many", "LINES": "x", "FORCE_COLOR": "1"},
    ],
    ids=str,
)
def test_terminals_of_any_kind_and_width(
    folder: Path,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fit = ("fit", "--latents", "latents.npy", "-o", "steps=3", "-o", "layers=1")
    more = [("--help",), ("samplers",), (*fit, "--progress", "--out", "bar.safetensors")]
    for words in (*PRINTING, *more):
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 0, (words, err)
        assert out.strip()
        assert "\x1b" not in out
        assert "Traceback" not in err
        if "--json" in words:
            json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirected, code, told",
    [
        (">&-", 0, ""),
        ("> /dev/full", 1, "Error: No space left on device: stdout\n"),
        ("2>&- <&- >&-", 0, ""),
    ],
)
def test_a_shell_and_an_interpreter_from_its_start_to_its_end(
    redirected: str, code: int, told: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    line = f"'{sys.executable}' -m latentfit samplers {redirected}"
    done = subprocess.run(
        ["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


@pytest.mark.parametrize("progress", [None, True, False])
def test_a_library_without_stderr_draws_no_bar(
    progress: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    sampler = fit_latent_sampler(
        None, z, method="realnvp", steps=2, layers=1, components=1, progress=progress
    )
    assert sampler.sample(3, seed=0).shape == (3, 2)
