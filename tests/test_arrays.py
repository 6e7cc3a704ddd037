"""Array files: what is written is read, and what can't be read is told."""

import itertools
import os
import pickle
import stat
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentfit.arrays import (
    SUFFIXES,
    map_array,
    read_array,
    write_array,
)
from latentfit.errors import DataError, FileFormatError
from latentfit.persistence import check_target

DTYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (4, 2), (2, 3, 1, 2)])
def test_round_trip_keeps_values_shape_and_dtype(tmp_path, suffix, dtype, shape):
    array = (torch.arange(np.prod(shape)).reshape(shape) % 2).to(dtype)
    write_array(tmp_path / f"z{suffix}", array)
    back = read_array(tmp_path / f"z{suffix}")
    assert back.dtype == dtype
    assert torch.equal(back, array)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_bfloat16_goes_where_it_can(tmp_path, suffix):
    array = torch.randn(4, 2).bfloat16()
    write_array(tmp_path / f"z{suffix}", array)
    assert torch.equal(read_array(tmp_path / f"z{suffix}"), array)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_bfloat16_has_no_numpy_file(tmp_path, suffix):
    with pytest.raises(DataError, match=r"bfloat16.*Write \.safetensors or \.pt"):
        write_array(tmp_path / f"z{suffix}", torch.ones(2).bfloat16())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_views_and_graphs_are_written_as_plain_arrays(tmp_path, suffix):
    array = torch.randn(6, 4, requires_grad=True).T[::2]
    write_array(tmp_path / f"z{suffix}", array)
    back = read_array(tmp_path / f"z{suffix}")
    assert torch.equal(back, array)
    assert not back.requires_grad


def test_numpy_and_torch_read_what_is_written(tmp_path):
    array = torch.randn(5, 2)
    for suffix in SUFFIXES:
        write_array(tmp_path / f"z{suffix}", array)
    assert np.array_equal(np.load(tmp_path / "z.npy"), array.numpy())
    with np.load(tmp_path / "z.npz") as file:
        assert file.files == ["latents"]
        assert np.array_equal(file["latents"], array.numpy())
    assert torch.equal(torch.load(tmp_path / "z.pt"), array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(3, 2),
        np.asfortranarray(np.arange(6.0).reshape(3, 2)),
        np.arange(6, dtype=np.longdouble).reshape(3, 2),
        np.arange(6, dtype=np.uint16).reshape(3, 2),
    ],
    ids=["big-endian", "fortran", "longdouble", "uint16"],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_numpy_arrays_of_any_layout(tmp_path, array, suffix):
    path = tmp_path / f"z{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, array)
    assert read_array(path).tolist() == array.astype(float).tolist()


def test_the_array_named_latents_is_taken_of_several(tmp_path):
    z, labels = torch.randn(3, 2), torch.arange(3)
    np.savez(tmp_path / "a.npz", labels=labels.numpy(), latents=z.numpy())
    save_file({"labels": labels, "latents": z}, tmp_path / "a.safetensors")
    torch.save({"labels": labels, "latents": z}, tmp_path / "a.pt")
    for suffix in (".npz", ".safetensors", ".pt"):
        assert torch.equal(read_array(tmp_path / f"a{suffix}"), z)


def test_one_tensor_in_a_dict_with_other_things(tmp_path):
    torch.save({"epoch": 3, "codes": torch.ones(2, 2)}, tmp_path / "a.pt")
    assert torch.equal(read_array(tmp_path / "a.pt"), torch.ones(2, 2))


def test_several_arrays_without_that_name_are_listed(tmp_path):
    arrays = {"train": torch.ones(2), "test": torch.zeros(2)}
    np.savez(tmp_path / "a.npz", **{name: array.numpy() for name, array in arrays.items()})
    save_file(arrays, tmp_path / "a.safetensors")
    torch.save(arrays, tmp_path / "a.pt")
    for suffix in (".npz", ".safetensors", ".pt"):
        with pytest.raises(DataError, match="'latents'.*train") as error:
            read_array(tmp_path / f"a{suffix}")
        assert "test" in str(error.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_no_array_at_all(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path)
    elif suffix == ".pt":
        torch.save({"epoch": 3}, path)
    else:
        save_file({}, path)
    with pytest.raises(DataError, match="got none"):
        read_array(path)


def test_missing_file_folder_and_suffix(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_array(tmp_path / "z.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(DataError, match="that is a folder"):
        read_array(tmp_path / "folder.npy")
    with pytest.raises(DataError, match=r"\.npy, \.npz, \.safetensors, \.pt.*got '.*z\.csv'"):
        read_array(tmp_path / "z.csv")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_file(tmp_path, suffix):
    (tmp_path / f"z{suffix}").touch()
    with pytest.raises(FileFormatError, match="the file is empty"):
        read_array(tmp_path / f"z{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_array_without_rows(tmp_path, suffix):
    write_array(tmp_path / f"z{suffix}", torch.empty(0, 3))
    with pytest.raises(DataError, match=r"Expected rows .*\(0, 3\)"):
        read_array(tmp_path / f"z{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_truncation_and_scrambling_is_a_format_error(tmp_path, suffix):
    path = tmp_path / f"z{suffix}"
    write_array(path, torch.randn(8, 4))
    whole = path.read_bytes()
    noise = np.random.default_rng(0)
    broken = [whole[:n] for n in np.linspace(1, len(whole) - 1, 20).astype(int)]
    broken += [noise.bytes(200) for _ in range(20)]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=f"{suffix} file of numbers; it can't be read"):
            read_array(path)


@pytest.mark.parametrize("suffix, actual", [*itertools.permutations(SUFFIXES, 2)])
def test_a_format_under_another_suffix(tmp_path, suffix, actual):
    write_array(tmp_path / f"a{actual}", torch.ones(3, 2))
    (tmp_path / f"a{actual}").rename(tmp_path / f"b{suffix}")
    with pytest.raises((DataError, FileFormatError)):
        read_array(tmp_path / f"b{suffix}")


def test_a_shape_larger_than_the_file_allocates_nothing(tmp_path):
    path = tmp_path / "z.npy"
    np.save(path, np.zeros((4, 3)))
    whole = path.read_bytes()
    header = whole[10:128].replace(b"(4, 3)", b"(4000000000000, 3)").rstrip().ljust(117) + b"\n"
    path.write_bytes(whole[:10] + header + whole[128:])
    with pytest.raises(FileFormatError):
        read_array(path)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_nothing_in_a_file_is_run(tmp_path, suffix):
    path, trace = tmp_path / f"z{suffix}", str(tmp_path / "trace")
    if suffix == ".pt":
        torch.save(Bomb(trace), path)
    else:
        array = np.array([Bomb(trace)], dtype=object)
        save = np.save if suffix == ".npy" else np.savez
        save(path, array)
    with pytest.raises(FileFormatError):
        read_array(path)
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(FileFormatError):
        read_array(path)
    assert not os.path.exists(trace)


@pytest.mark.parametrize(
    "array",
    [np.array(["a", "b"]), np.ones(2, dtype=complex), np.zeros(2, dtype=[("a", float)])],
    ids=["text", "complex", "structured"],
)
def test_what_is_no_number(tmp_path, array):
    np.save(tmp_path / "z.npy", array)
    with pytest.raises(DataError, match="Expected numbers"):
        read_array(tmp_path / "z.npy")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"z{suffix}"
    write_array(path, torch.ones(3, 2))
    before = path.read_bytes()

    def fail(_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_array(path, torch.zeros(3, 2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mode_is_the_umask_s(tmp_path, suffix):
    previous = os.umask(0o027)
    try:
        write_array(tmp_path / f"z{suffix}", torch.ones(3, 2))
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / f"z{suffix}").stat().st_mode) == 0o640


def test_targets_are_checked_beforehand(tmp_path):
    assert check_target(str(tmp_path / "z.NPY"), suffixes=SUFFIXES) == tmp_path / "z.NPY"
    check_target(tmp_path / "z.anything")
    with pytest.raises(
        DataError, match=r"a .npy, .* file to write; got '.*z.csv'\.$"
    ):  # not how to read one
        check_target(tmp_path / "z.csv", suffixes=SUFFIXES)
    with pytest.raises(DataError, match="there is no .*nowhere"):
        check_target(tmp_path / "nowhere" / "z.npy")
    with pytest.raises(DataError, match="is a folder"):
        check_target(tmp_path)


def test_a_zip_that_holds_no_array(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as file:
        file.writestr("readme.txt", "no array")
    with pytest.raises(DataError, match="got none"):
        read_array(tmp_path / "z.npz")


def test_objects_in_a_file_are_told_without_advice_to_run_them(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(FileFormatError, match="holds other objects.*Save the tensor alone") as told:
        read_array(path)
    assert "weights_only" not in str(told.value)


def test_a_file_that_is_cut_off_or_of_another_kind_gets_a_remedy(tmp_path):
    write_array(tmp_path / "z.npy", torch.zeros(100, 3))
    content = (tmp_path / "z.npy").read_bytes()
    (tmp_path / "z.npy").write_bytes(content[:500])
    for read in (read_array, map_array):
        with pytest.raises(
            FileFormatError, match="cut off, or of another format. Write or copy it"
        ):
            read(tmp_path / "z.npy")
    with pytest.raises(DataError, match=r"\.npy, \.npz, .* got '.*z.csv'. Convert it: np\.save"):
        read_array(tmp_path / "z.csv")
