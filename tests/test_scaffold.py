"""New plugin projects: what is written, what is refused, and that one installs and passes as it stands."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from latentfit.errors import DataError, OptionError
from latentfit.scaffold import write_project


def text_of(path: Path) -> str:
    return "\n".join(file.read_text("utf-8") for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "name, method, module, cls",
    [
        ("my-sampler", "my-sampler", "latentfit_my_sampler", "MySampler"),
        ("copula", "copula", "latentfit_copula", "CopulaSampler"),
        ("latentfit-x2-y", "x2-y", "latentfit_x2_y", "X2YSampler"),
        ("none", "none", "latentfit_none", "NoneSampler"),  # None is no name for a class
        ("class", "class", "latentfit_class", "ClassSampler"),
        ("tensor", "tensor", "latentfit_tensor", "TensorSampler"),
    ],
)
def test_all_names_follow_from_one(
    tmp_path: Path, name: str, method: str, module: str, cls: str
) -> None:
    path = write_project(name, tmp_path)
    assert path == tmp_path / name
    found = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    assert found == ["README.md", f"{module}.py", "pyproject.toml", f"tests/test_{module}.py"]
    project = tomllib.loads((path / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == f"latentfit-{method}"
    assert project["dependencies"] == ["latentfit"]
    assert project["entry-points"] == {"latentfit.samplers": {method: f"{module}:{cls}"}}
    tree = ast.parse((path / f"{module}.py").read_text("utf-8"))
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == [cls]
    test = (path / "tests" / f"test_{module}.py").read_text("utf-8")
    assert f"from {module} import {cls}\n" in test
    assert f"parametrize_with_checks([({cls}, {{}})])" in test
    for placeholder in ("{method}", "{module}", "{project}", "{class}"):
        assert placeholder not in text_of(path)


@pytest.mark.parametrize(
    "name, told",
    [
        ("My_Sampler", "such as 'my-sampler'; got 'My_Sampler'"),
        ("MySampler", "such as 'my-sampler'"),
        ("9-lives", "such as 'lives'"),
        ("a--b", "such as 'a-b'"),
        ("a-", "such as 'a'"),
        ("", "such as 'my-sampler'"),
        ("---", "such as 'my-sampler'"),
        ("../escape", "such as 'escape'"),
        ("../../x", "such as 'x'"),
        ("/absolute", "such as 'absolute'"),
        ("..", "such as 'my-sampler'"),
        ("a\0b", "such as 'a-b'"),
        ("con", "no system keeps for itself; 'con'"),
        ("lpt1", "no system keeps for itself; 'lpt1'"),
        ("a/b", "such as 'a-b'"),
        ("a\n", "such as 'a'"),
        ("größe", "such as 'gr"),
        ("x" * 61, "at most 60 long"),
        ("auto", "'auto' has a meaning in latentfit"),
        ("latentfit", "'latentfit' has a meaning"),
        ("sampler", "'sampler' has a meaning"),
        ("realnvp", "'realnvp' is a sampler of latentfit 0"),
        ("latentfit-realnvp", "'realnvp' is a sampler of latentfit 0"),
        ("bench", "the module latentfit_bench is installed already"),
    ],
)
def test_names_that_cannot_be_given_are_refused(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(OptionError) as e:
        write_project(name, tmp_path)
    assert told in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-file").write_text("mine")
    (tmp_path / "a-link").symlink_to(tmp_path / "nowhere")
    for name in ("a-folder", "a-file", "a-link"):
        with pytest.raises(DataError, match=f"{name} is there already"):
            write_project(name, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a-file", "a-folder", "a-link"]
    assert list((tmp_path / "a-folder").iterdir()) == []
    assert (tmp_path / "a-file").read_text() == "mine"
    for parent in ("nowhere", "a-file"):
        with pytest.raises(DataError, match="Expected a folder to write new into"):
            write_project("new", tmp_path / parent)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_is_left_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    whole, written = Path.write_text, []

    def fail_at_the_third(self: Path, *arguments: str) -> int:
        written.append(self)
        if len(written) == 3:
            raise error
        return whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail_at_the_third)
        with pytest.raises(type(error)):
            write_project("my-sampler", tmp_path)
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []
    write_project("my-sampler", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["my-sampler"]


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = write_project("my-sampler", tmp_path)
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in path.rglob("*") if file.is_file()}
    assert modes == {0o644}
    assert {folder.stat().st_mode & 0o777 for folder in (path, path / "tests")} == {0o755}


def test_it_is_formatted_and_clean(tmp_path: Path) -> None:
    path = write_project("my-sampler", tmp_path)
    for words in (("check", "--select", "E,F,I,B,UP,RUF"), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--isolated", "--line-length", "100"],
            cwd=path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_installs_and_its_tests_pass_untouched(tmp_path: Path) -> None:
    """A virtual environment of its own sees this one's packages, and gets the project, editable."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (folder,) = environment.glob("lib/python*/site-packages")
    parents = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in parents]
    (folder / "parents.pth").write_text("".join(lines))

    def run(*words: str) -> str:
        done = subprocess.run(
            [environment / "bin" / "python", "-W", "error", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "latentfit", "new-plugin", "my-sampler")
    pip = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    run("-W", "ignore", *pip, "-e", "./my-sampler")
    listed = run("-m", "latentfit", "samplers").splitlines()
    assert "latentfit-my-sampler 0.1.0" in next(x for x in listed if x.startswith("my-sampler "))
    assert "ridge" in run("-m", "latentfit", "samplers", "my-sampler")
    summary = run("-m", "pytest", "-q", "-W", "error", "./my-sampler").splitlines()[-1]
    assert " passed" in summary
    assert int(summary.split()[0]) > 20
