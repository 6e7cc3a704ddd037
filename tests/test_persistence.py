"""Files: the same sampler in another process, atomic writing, and damage of every kind."""

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from latentfit import LatentSampler, fit_latent_sampler, list_samplers, load_sampler
from latentfit.errors import (
    DataError,
    DecoderUnavailable,
    FileFormatError,
    OptionError,
    UnknownPluginError,
)
from latentfit.options import describe_options
from latentfit.persistence import (
    CHECKPOINT,
    SAMPLER,
    atomic_path,
    read_tensors,
    write_tensors,
)
from latentfit.registry import load_sampler_class

X = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0)) * 7 + 50
X[:, 0, 1] = 0.1  # a constant dimension


def configurations() -> list[tuple[str, dict[str, Any]]]:
    """Every installed method, with each of its bases if it has any."""
    found: list[tuple[str, dict[str, Any]]] = []
    for info in list_samplers():
        options = describe_options(load_sampler_class(info.name))
        fast: dict[str, Any] = {"steps": 5} if "steps" in options else {}
        bases = ("normal", "mixture") if "base" in options else ()
        found += [(info.name, {**fast, "base": base}) for base in bases] or [(info.name, fast)]
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sampler's file; copy it before changing it."""
    path = tmp_path_factory.mktemp("saved") / "s.safetensors"
    fit_latent_sampler(None, X, steps=2, components=2, hidden=(4,), layers=1).save(path)
    return path


def samples(sampler: LatentSampler) -> torch.Tensor:
    return sampler.sample(20, seed=3)


def test_another_process_gives_the_same_samples_and_scores_bit_for_bit(
    tmp_path: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    program = """
import sys, numpy as np, torch
from latentfit import load_sampler
torch.set_num_threads(1)
z = torch.from_numpy(np.load("z.npy"))
for name in sys.argv[1:]:
    s = load_sampler(name + ".safetensors")
    np.save(name + ".samples.npy", s.sample(9000, seed=5).numpy())
    if s.has_density:
        np.save(name + ".scores.npy", s.log_prob(z).numpy())
"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    np.save(tmp_path / "z.npy", X.numpy())
    fitted = {}
    for index, (method, options) in enumerate(configurations()):
        for dtype in (torch.float32, torch.float64):
            name = f"{index}-{dtype}"
            fitted[name] = fit_latent_sampler(None, X.to(dtype), method=method, **options)
            fitted[name].save(tmp_path / f"{name}.safetensors")
    run_python("-W", "error", "-c", program, *fitted)
    for name, sampler in fitted.items():
        there = np.load(tmp_path / f"{name}.samples.npy")
        here = sampler.sample(9000, seed=5).numpy()
        assert there.dtype == here.dtype
        assert np.array_equal(there, here), name
        if sampler.has_density:
            assert np.array_equal(
                np.load(tmp_path / f"{name}.scores.npy"), sampler.log_prob(X).numpy()
            )
    torch.set_num_threads(threads)


def test_everything_else_survives_too(tmp_path: Path) -> None:
    decoder = nn.Flatten()
    sampler = fit_latent_sampler(None, X, hidden=(8, 4), steps=3, decoder=decoder)
    sampler.save(tmp_path / "s")
    loaded = load_sampler(tmp_path / "s")
    assert loaded.info == {**sampler.info, "options": loaded.options}
    for name in ("method", "options", "shape", "dim", "dtype", "device", "has_density", "history"):
        assert getattr(loaded, name) == getattr(sampler, name)
    with pytest.raises(DecoderUnavailable, match="load_sampler"):
        loaded.generate(1)
    again = load_sampler(tmp_path / "s", decoder=decoder, device="cpu")
    assert torch.equal(again.generate(4, seed=0), sampler.generate(4, seed=0))
    assert repr(again) == repr(sampler)
    loaded.save(tmp_path / "t")  # a second generation
    assert torch.equal(samples(load_sampler(tmp_path / "t")), samples(sampler))
    assert (tmp_path / "t").read_bytes() == (tmp_path / "s").read_bytes()


def test_a_sampler_can_be_saved_onto_the_file_it_came_from(saved: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(saved, tmp_path / "s"))
    loaded = load_sampler(path)
    loaded.save(path)
    assert torch.equal(samples(load_sampler(path)), samples(loaded))


def test_gradients_reach_latents_that_a_file_made_in_inference_mode_scores(saved: Path) -> None:
    with torch.inference_mode():
        loaded = load_sampler(saved)
    z = X[:3].clone().requires_grad_()
    loaded.log_prob(z).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load_sampler(saved)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_the_mode_is_the_umasks(umask: int, mode: int, tmp_path: Path) -> None:
    old = os.umask(umask)
    try:
        write_tensors(tmp_path / "s", {}, {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode


@pytest.mark.parametrize(
    "tensors", [{}, {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(True)}]
)
def test_what_was_written_is_read(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    header = {"info": {"zeros": 64 * "0", "text": "zwölf"}, "history": []}
    write_tensors(tmp_path / "s", tensors, header)
    found, told = read_tensors(tmp_path / "s")
    assert {name: told[name] for name in header} == header
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
    write_tensors(tmp_path / "t", tensors, dict(reversed(header.items())))
    assert (tmp_path / "t").read_bytes() == (tmp_path / "s").read_bytes()


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(saved: Path) -> None:
    content, digest = saved.read_bytes(), read_tensors(saved)[1]["sha256"].encode()
    assert hashlib.sha256(content.replace(digest, 64 * b"0")).hexdigest().encode() == digest


def test_a_link_that_waits_under_the_temporary_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda n: "chosen")
    with atomic_path(tmp_path / "s") as temporary:
        pass
    (tmp_path / "outside").write_text("theirs")
    temporary.symlink_to(tmp_path / "outside")
    with pytest.raises(FileExistsError), atomic_path(tmp_path / "s"):
        pass
    assert (tmp_path / "outside").read_text() == "theirs"


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "s")
    write_tensors(link, {"a": torch.ones(1)}, {})
    assert link.is_symlink()
    assert torch.equal(read_tensors(tmp_path / "real" / "s")[0]["a"], torch.ones(1))
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "s").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def a_card(folder: Path) -> None:
    fit_latent_sampler(None, X, method="gaussian").save_pretrained(folder, license="mit")


def a_store(folder: Path) -> None:
    fit_latent_sampler(nn.Flatten(), X, method="gaussian", store=folder)


def a_checkpoint(folder: Path) -> None:
    fit_latent_sampler(None, X, method="gmm", checkpoint=folder)


@pytest.mark.parametrize(
    "write, leads_to",
    [
        (a_card, "a file"),
        (a_card, "nothing"),
        (a_store, "a file"),
        (a_store, "nothing"),
        (a_checkpoint, "nothing"),  # a file that is no checkpoint is refused
    ],
)
def test_links_in_a_folder_of_ours_lead_nowhere(
    write: Callable[[Path], None],
    leads_to: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("latentfit.checkpoint.SECONDS", 0.0)
    write(tmp_path / "first")
    made = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    names = sorted(made.keys() - {".lock"})  # filelock follows no link
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "folder").mkdir()
    for name in names:
        if leads_to == "a file":
            (outside / name).write_bytes(b"theirs")
        (tmp_path / "folder" / name).symlink_to(outside / name)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    write(tmp_path / "folder")
    assert names
    for name in names:
        assert not (tmp_path / "folder" / name).is_symlink()
        size = (tmp_path / "folder" / name).stat().st_size
        assert abs(size - len(made[name])) <= 64  # a header tells seconds, in more digits or fewer
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before


def test_who_reads_the_old_file_meanwhile_reads_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("old")
    with path.open() as reader:
        write_tensors(path, {}, {})
        assert reader.read() == "old"
    assert path.read_bytes() != b"old"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_the_old_file_and_no_litter(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "s"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_header_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_tensors(path, {}, {"info": float("nan")})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_paths_that_cannot_be_written_or_read_are_told(saved: Path, tmp_path: Path) -> None:
    sampler = load_sampler(saved)
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}' is a folder"):
        sampler.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="The folder .*missing.* does not exist"):
        sampler.save(tmp_path / "missing" / "s")
    with pytest.raises(OSError, match="File name too long") as caught:
        sampler.save(tmp_path / (300 * "s"))
    assert caught.value.filename == str(tmp_path / (300 * "s"))
    for kind in (SAMPLER, CHECKPOINT):
        with pytest.raises(FileNotFoundError, match=f"the file of {kind}; .*{tmp_path}/missing'"):
            read_tensors(tmp_path / "missing", kind)
        with pytest.raises(IsADirectoryError, match=f"the file of {kind}; '{tmp_path}' is a fold"):
            read_tensors(tmp_path, kind)
    with pytest.raises(NotADirectoryError):
        load_sampler(saved / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_off_anywhere_is_refused(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    path = tmp_path / "s"
    for size in [*range(40), *range(40, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:size])
        whole = size >= 8 + int.from_bytes(content[:8], "little")  # the header
        with pytest.raises(FileFormatError, match=f"{path}: .*{'damaged' if whole else 'cut off'}"):
            load_sampler(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(FileFormatError, match="damaged"):
        load_sampler(path)


@pytest.mark.parametrize("bit", [1, 0x20, 0x80])
def test_a_flipped_bit_anywhere_is_noticed(bit: int, saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    path = tmp_path / "s"
    for place in [*range(10), *range(10 + bit % 7, len(content), 7)]:
        content[place] ^= bit
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=str(path)):
            load_sampler(path)
        content[place] ^= bit


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text that is no such file",
        b"\xff" * 100,
        b"\x02" + b"\0" * 7 + b"{}",
        b"\x02" + b"\0" * 7 + b"[]",
        b"\x04" + b"\0" * 7 + b"null",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(FileFormatError, match="expected a s"):
        load_sampler(tmp_path / "s")


@pytest.mark.parametrize(
    "metadata, message",
    [
        (None, "no 'latentfit' header"),
        ({"format": "pt"}, "no 'latentfit' header"),
        ({"latentfit": "no json"}, "expected a safetensors file"),
        ({"latentfit": "[1]"}, "no 'latentfit' header"),
        ({"latentfit": "{}"}, "expected format version 1; got None"),
        (
            {"latentfit": '{"format_version": 2}'},
            "expected format version 1; got 2. Upgrade latentfit to read newer",
        ),
        ({"latentfit": '{"format_version": 1}'}, "damaged"),
        ({"latentfit": '{"format_version": 1, "sha256": ""}'}, "damaged"),
    ],
)
def test_other_safetensors_files_are_refused(
    metadata: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    content = safetensors.torch.save({"a": torch.ones(2)}, metadata=metadata)
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        load_sampler(tmp_path / "s")


@pytest.mark.parametrize(
    "kind, remedy",
    [(SAMPLER, "Copy or save it anew."), (CHECKPOINT, "Delete it to start anew.")],
)
def test_damage_is_told_with_what_to_do_about_this_kind_of_file(
    kind: str, remedy: str, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    write_tensors(path, {"a": torch.ones(2)}, {"kind": kind})
    content = path.read_bytes()
    digest = read_tensors(path, kind)[1]["sha256"]
    damaged = {
        "damaged": content[:-1] + b"!",
        "cut off": content[:9],
        "a safetensors file": content[:8] + b"!" + content[9:],
    }
    # Of the right digest, but no table of tensors.
    forged = content.replace(b"F32", b"F23").replace(digest.encode(), 64 * b"0")
    anew = hashlib.sha256(forged).hexdigest().encode()
    damaged["expected a safetensors"] = forged.replace(64 * b"0", anew)
    for what, bad in damaged.items():
        path.write_bytes(bad)
        with pytest.raises(FileFormatError, match=rf"{path}: .*{what}.* {remedy}$"):
            read_tensors(path, kind)


@pytest.mark.parametrize(
    "written, read, remedy",
    [
        (CHECKPOINT, SAMPLER, r"Go on with fit_latent_sampler\(\.\.\., checkpoint=\)\."),
        (SAMPLER, CHECKPOINT, "Name another folder for the checkpoint."),
        ("a dream", SAMPLER, ""),
        (None, CHECKPOINT, "Name another folder for the checkpoint."),  # older samplers
    ],
)
def test_a_file_of_another_kind_is_told(
    written: str | None, read: str, remedy: str, tmp_path: Path
) -> None:
    write_tensors(tmp_path / "s", {}, {"kind": written} if written else {})
    told = f"expected {read}; this is '{written or SAMPLER}'. {remedy}"
    with pytest.raises(FileFormatError, match=told):
        read_tensors(tmp_path / "s", read)


def test_a_header_has_at_most_16_megabytes(tmp_path: Path) -> None:
    write_tensors(tmp_path / "s", {}, {"info": "x" * (16 * 2**20 - 1000)})
    assert len(read_tensors(tmp_path / "s")[1]["info"]) == 16 * 2**20 - 1000
    with pytest.raises(DataError, match="header of at most 16,777,216 bytes.*Leave long texts out"):
        write_tensors(tmp_path / "s", {}, {"info": "x" * 16 * 2**20})
    assert len(read_tensors(tmp_path / "s")[1]["info"]) == 16 * 2**20 - 1000  # the old file
    forged = b"{}" + b" " * 16 * 2**20
    (tmp_path / "s").write_bytes(len(forged).to_bytes(8, "little") + forged)
    with pytest.raises(FileFormatError, match="expected a safetensors file"):
        read_tensors(tmp_path / "s")


def test_a_metadata_value_that_is_no_text_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"latentfit": 5}}).encode()
    (tmp_path / "s").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileFormatError, match="expected a safetensors file"):
        load_sampler(tmp_path / "s")


def weight(tensors: dict[str, Any]) -> str:
    """The name of one of the sampler's tensors."""
    return min(name for name in tensors if name.startswith("sampler."))


def rewritten(
    saved: Path, path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]
) -> Path:
    """A file with a right digest and other content."""
    tensors, header = read_tensors(saved)
    change(header, tensors)
    write_tensors(path, tensors, {"info": header.get("info"), "history": header.get("history")})
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h, t: h.pop("info"), "latentfit header"),
        (lambda h, t: h["info"].pop("options"), "KeyError: 'options'"),
        (lambda h, t: h["info"].update(transform="magic"), "latentfit header; .*'magic'"),
        (lambda h, t: h["info"].update(transform=["none"]), r"latentfit header; .*\['none'\]"),
        (lambda h, t: h["info"].update(dtype="int8"), "dtype 'int8'"),
        (lambda h, t: h["info"].update(shape=[2, 4]), r"shape \[2, 4\], dim 6"),
        (lambda h, t: h["info"].update(shape=[-2, -3]), r"shape \[-2, -3\]"),
        (lambda h, t: h["info"].update(n=0), "n 0"),
        (lambda h, t: h["info"].update(n=1.5), "n 1.5"),
        (lambda h, t: h["info"].update(n="many"), "n 'many'"),
        (lambda h, t: h["info"].update(dim=7, shape=[7]), "Expected transform tensors"),
        (lambda h, t: h["info"].update(options=[1]), r"options \[1\]"),
        (lambda h, t: h["info"]["options"].update(layers=2), "tensor '.*expected .*; got none"),
        (
            lambda h, t: h["info"]["options"].update(layers=0),
            r"Option 'layers' .*int in \[1, 1000\]",
        ),
        (lambda h, t: h["info"]["options"].update(extra=0), "no option 'extra'"),
        (lambda h, t: t.pop(weight(t)), "tensor '.*': expected .*; got none"),
        (lambda h, t: t.update({"sampler.x": torch.ones(1)}), "'x': expected none; got"),
        (lambda h, t: t.update({"transform.mean": torch.ones(2)}), "Expected transform tensors"),
        (lambda h, t: t["transform.scale"].fill_(-1), "scales >= 0"),
        (
            lambda h, t: t.update({weight(t): t[weight(t)].double()}),
            "tensor '.*': expected .*float32.*got .*float64",
        ),
        (
            lambda h, t: t.update({"other.x": torch.ones(1)}),
            "tensors of a sampler; got one called 'other.x'",
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], object],
    message: str,
    saved: Path,
    tmp_path: Path,
) -> None:
    path = rewritten(saved, tmp_path / "s", change)
    with pytest.raises(FileFormatError, match=message):
        load_sampler(path)


def test_a_method_that_is_not_installed_is_named(saved: Path, tmp_path: Path) -> None:
    path = rewritten(saved, tmp_path / "s", lambda h, t: h["info"].update(method="theirs"))
    with pytest.raises(UnknownPluginError, match="Unknown sampler 'theirs'; installed: .*realnvp"):
        load_sampler(path)


@pytest.mark.parametrize("device", ["gpu", "cpux", 3.0, "meta"])
def test_an_unknown_device_is_refused(device: Any, saved: Path) -> None:
    with pytest.raises(OptionError, match="Expected a device that this machine has"):
        load_sampler(saved, device=device)


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="is a device, a pipe or a socket"), atomic_path(pipe):
        pass
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
