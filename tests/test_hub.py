"""Samplers as folders and repositories with a model card."""

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import latentfit.hub
from latentfit import LatentSampler, fit_latent_sampler
from latentfit.errors import FileFormatError, OptionError

huggingface_hub = pytest.importorskip("huggingface_hub")

CARD = {
    "encoder": "stabilityai/sd-vae-ft-mse",
    "dataset": "ylecun/mnist",
    "license": "apache-2.0",
    "metrics": {"FCD": 1.25, "NLL, nats": -3.0},
}


@pytest.fixture(scope="module")
def sampler() -> LatentSampler:
    generator = torch.Generator().manual_seed(0)
    return fit_latent_sampler(None, torch.randn(200, 2, 2, 2, generator=generator), method="gmm")


def front(card: str) -> Any:
    """The YAML at the top, by a YAML parser."""
    return yaml.safe_load(card.split("---\n")[1])


def test_a_folder_has_the_sampler_and_its_card(sampler: LatentSampler, tmp_path: Path) -> None:
    folder = sampler.save_pretrained(tmp_path / "new" / "folder", **CARD)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "sampler.safetensors"]
    loaded = LatentSampler.from_pretrained(folder, decoder=torch.nn.Flatten())
    assert torch.equal(loaded.sample(5, seed=0), sampler.sample(5, seed=0))
    assert loaded.generate(5).shape == (5, 8)
    card = (folder / "README.md").read_text()
    told = front(card)
    assert told["library_name"] == "latentfit"
    assert told["license"] == "apache-2.0"
    assert told["datasets"] == ["ylecun/mnist"]
    for text in ("stabilityai/sd-vae-ft-mse", "2x2x2", "180 latents", "| FCD | 1.25 |", "| -3 |"):
        assert text in card


def test_a_card_that_is_there_stays_unless_there_is_something_to_tell(
    sampler: LatentSampler, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("mine")
    sampler.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    sampler.save_pretrained(tmp_path, license="mit")
    assert "mit" in (tmp_path / "README.md").read_text()


def test_names_are_no_markup_in_a_card(sampler: LatentSampler, tmp_path: Path) -> None:
    hostile = "x | <script>alert(1)</script>\n---\n# [a](javascript:b) `c`"
    sampler.save_pretrained(tmp_path, encoder=hostile, license=hostile, metrics={hostile: 1.0})
    card = (tmp_path / "README.md").read_text()
    assert front(card)["license"] == hostile
    _, _, body = card.split("---\n", 2)
    assert "<script" not in body.replace("\\<", "")
    lines = [line for line in body.splitlines() if "script" in line]
    assert len(lines) == 3
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)


HOSTILE = [
    "a | b",
    "mit\ntags: [evil]\n---\n# title",
    "key: value # comment",
    "'a' \"b\" \\ {c} [d] &e *f !g %h @i `j`",
    "- a",
    "yes",
    "<script>alert(1)</script> <!-- c --> &lt;b&gt;",
    "[a](javascript:alert(1)) ![b](http://127.0.0.1/b.png) <http://127.0.0.1>",
    "**a** _b_ ~~c~~ $d$ # e \\|",
    "é€😀 \x7f \x85 \u2028 \ufeff \u202e",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_any_text_is_that_text_in_the_front_and_in_the_body(
    sampler: LatentSampler, render: Callable[[str], Any], tmp_path: Path, hostile: str
) -> None:
    told = dict.fromkeys(("encoder", "dataset", "license"), hostile)
    cards = []
    for number, (words, metric) in enumerate(((dict.fromkeys(told, "x"), "x"), (told, hostile))):
        folder = sampler.save_pretrained(tmp_path / str(number), **words, metrics={metric: 1.0})
        cards.append((folder / "README.md").read_text(encoding="utf-8"))
    (plain, plain_body), (given, body) = (card.split("\n---\n\n", 1) for card in cards)
    plain_front, front_ = yaml.safe_load(plain), yaml.safe_load(given)
    assert front_["license"] == hostile
    assert front_ | {"license": "x", "datasets": ["x"]} == plain_front
    expected, got = render(plain_body), render(body)
    assert got.kinds == expected.kinds
    name = " ".join(hostile.split())
    rows = [
        [cell if cell != "x" else name for cell in cells]
        for cells in ([cells[0], cells[1].replace("x;", f"{name};")] for cells in expected.rows)
    ]
    assert got.rows == rows


def test_a_name_that_is_no_unicode_still_gives_a_card(
    sampler: LatentSampler, tmp_path: Path
) -> None:
    sampler.save_pretrained(tmp_path, encoder="vae-\udcff", license="mit")
    assert "vae-?" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoder": 3},
        {"license": " "},
        {"metrics": [1]},
        {"metrics": {"FCD": float("nan")}},
        {"metrics": {"FCD": True}},
        {"metrics": {3: 1.0}},
        {"data": "MNIST"},
    ],
    ids=str,
)
def test_what_a_card_cannot_tell_is_refused_before_anything_is_written(
    wrong: dict[str, Any], sampler: LatentSampler, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=f"Expected .*{next(iter(wrong))}"):
        sampler.save_pretrained(tmp_path / "folder", **wrong)
    assert not (tmp_path / "folder").exists()


def test_other_folders_and_names_are_told(sampler: LatentSampler, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"sampler\.safetensors"):
        LatentSampler.from_pretrained(tmp_path)
    for name in (tmp_path / "absent", "no-repository", "../up/../there", "a/b/c"):
        with pytest.raises((FileNotFoundError, FileFormatError)):
            LatentSampler.from_pretrained(name)
    with pytest.raises(OptionError, match="Expected source .*user/name"):  # not the working folder
        LatentSampler.from_pretrained("")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub in a folder: the calls that latentfit makes, with the signatures of huggingface_hub's own."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, *, token: Any = None) -> None: ...

        def create_repo(self, repo_id: str, *, private: Any, exist_ok: bool) -> Any:
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=repo_id)

        def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
            assert (root / repo_id).is_dir()

        def file_exists(self, repo_id: str, filename: str, *, revision: Any) -> bool:
            return (root / repo_id / filename).exists()

        def upload_folder(
            self, *, repo_id: str, folder_path: Any, revision: Any, commit_message: str
        ) -> Any:
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"hub:{repo_id}")

    def download(
        repo_id: str,
        filename: str,
        *,
        revision: Any,
        token: Any,
        cache_dir: Any,
        local_files_only: bool,
    ) -> str:
        return str(root / repo_id / filename)

    real = inspect.signature(huggingface_hub.hf_hub_download).parameters
    assert inspect.signature(download).parameters.keys() <= real.keys()
    for name in ("create_repo", "create_branch", "file_exists", "upload_folder"):
        real = inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters
        assert inspect.signature(getattr(Api, name)).parameters.keys() <= real.keys()
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return root


def test_a_sampler_goes_to_the_hub_and_comes_back(sampler: LatentSampler, hub: Path) -> None:
    assert sampler.push_to_hub("somebody/digits", license="mit") == "hub:somebody/digits"
    assert front((hub / "somebody/digits/README.md").read_text())["license"] == "mit"
    (hub / "somebody/digits/README.md").write_text("edited there")
    sampler.push_to_hub("somebody/digits", revision="new", license=None)
    assert (hub / "somebody/digits/README.md").read_text() == "edited there"
    loaded = LatentSampler.from_pretrained("somebody/digits")
    assert torch.equal(loaded.sample(5, seed=0), sampler.sample(5, seed=0))


def test_without_huggingface_hub_folders_work(
    sampler: LatentSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    sampler.save_pretrained(tmp_path)
    LatentSampler.from_pretrained(tmp_path)
    for call in (lambda: LatentSampler.from_pretrained("a/b"), lambda: sampler.push_to_hub("a/b")):
        with pytest.raises(ImportError, match=r"pip install 'latentfit\[hub\]'"):
            call()


@pytest.mark.parametrize(
    "name", ["./nope", "../nope", "a--b/c", "a/b..c", "a/b-", "-a/b", "a/.b", "a/b/c", "no", "~/no"]
)
def test_what_can_be_no_repository_is_told_without_asking(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfit.hub._hub", lambda: pytest.fail("asked"))
    told = r"a repository's name such as 'user/name'; got '.*'; there is no such folder"
    with pytest.raises(FileNotFoundError, match=told):
        LatentSampler.from_pretrained(name)


@pytest.mark.parametrize(
    "name", ["user/name", "a/b", "a_-b.c/_d", "a-b/c", "./a", "a/-b", "a--b/c", "a.b/c..d", "a/b."]
)
def test_the_rule_for_names_is_the_hubs(name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        valid = True
    except HFValidationError:
        valid = False
    assert bool(latentfit.hub._REPOSITORY.fullmatch(name)) == valid


def test_a_file_is_no_folder_to_load(sampler: LatentSampler, tmp_path: Path) -> None:
    sampler.save(tmp_path / "s")
    with pytest.raises(FileNotFoundError, match="that is a file: load_sampler loads it"):
        LatentSampler.from_pretrained(str(tmp_path / "s"))
