"""Array files of the command line, in and out; nothing that a file holds is ever run."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save

from latentfit.arguments import check_path
from latentfit.errors import DataError, FileFormatError
from latentfit.persistence import atomic_path, check_target

__all__ = [
    "NAME",
    "SUFFIXES",
    "map_array",
    "read_array",
    "write_array",
]

_Array = TypeVar("_Array", torch.Tensor, npt.NDArray[Any])

NAME = "latents"
"""The array that is read from, and written to, a file that can hold several."""

_CONVERT = ' Convert it: np.save("z.npy", np.loadtxt("z.csv", delimiter=",")).'


def read_array(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read the one array of numbers that a file holds.

    Of several arrays in one file, the one named ``latents`` is taken. Pickled objects are refused.

    Args:
        path: A .npy, .npz, .safetensors or .pt file (a tensor, or a dict that holds one).

    Returns:
        The array on the CPU, of the shape and dtype that the file has.

    Raises:
        DataError: No such file, an unknown suffix, no rows, no numbers, or several arrays none of
            which is named ``latents``.
        FileFormatError: The file is damaged, or isn't what its suffix says.
    """
    path = check_path("path", path)
    return _checked(path, _READERS[_suffix(path)])


def map_array(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Open a .npy file to be read as it is needed; raises what :func:`read_array` does.

    Args:
        path: The file; it must not change while the array is in use.

    Returns:
        A read-only array.
    """
    path = check_path("path", path)
    _suffix(path)
    return _checked(path, _map_npy)


def _checked(path: Path, read: Callable[[Path], _Array]) -> _Array:
    """Read a file, and tell what is wrong with it."""
    if not path.is_file():
        found = "that is a folder" if path.is_dir() else "there is no such file"
        raise DataError(f"Expected an array file at {path}; {found}.")
    if path.stat().st_size == 0:
        raise FileFormatError(f"Expected an array in {path}; the file is empty. Write it again.")
    try:
        array = read(path)
    except (DataError, FileFormatError):
        raise
    except PermissionError as error:
        raise DataError(f"Expected a file that may be read; {path}: {error.strerror}.") from error
    except Exception as error:  # fed with any bytes, the formats' parsers raise nearly anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FileFormatError(
            f"Expected {path} to be a {path.suffix} file of numbers; it can't be read: {reason}. "
            "Is it cut off, or of another format? Write or copy it anew."
        ) from error
    if math.prod(array.shape) == 0:
        raise DataError(
            f"Expected rows in {path}; it holds an array of shape {tuple(array.shape)}."
        )
    return array


def write_array(path: str | os.PathLike[str], array: torch.Tensor) -> None:
    """Write an array to a file, whole or not at all; a file that was there before is replaced.

    Args:
        path: A .npy, .npz, .safetensors or .pt file; .npz and .safetensors name it ``latents``.
        array: A tensor of any shape, on any device.

    Raises:
        DataError: An unknown suffix, a folder that isn't there, or a dtype the format can't hold.
    """
    path = check_target(path, suffixes=SUFFIXES)
    array = array.detach().cpu().contiguous()
    if array.dtype == torch.bfloat16 and _suffix(path) in {".npy", ".npz"}:
        raise DataError(
            f"Expected a dtype that NumPy has, for {path}; got bfloat16. Write .safetensors or .pt."
        )
    with atomic_path(path) as temporary:
        _WRITERS[_suffix(path)](temporary, array)


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        hint = _CONVERT if suffix in (".csv", ".txt", ".tsv") else ""
        raise DataError(f"Expected an array file ({', '.join(SUFFIXES)}); got {str(path)!r}.{hint}")
    return suffix


def _read_npy(path: Path) -> torch.Tensor:
    # Mapping compares the header's shape with the file's size before anything is allocated.
    return _from_numpy(np.array(np.lib.format.open_memmap(path, mode="r")), path)


def _map_npy(path: Path) -> npt.NDArray[Any]:
    array = np.lib.format.open_memmap(path, mode="r")
    if array.dtype.kind not in "buif":
        raise DataError(f"Expected numbers in {path}; got an array of dtype {array.dtype}.")
    return array


def _read_npz(path: Path) -> torch.Tensor:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no zip archive")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        names = [n.removesuffix(".npy") for n in arrays.zip.namelist() if n.endswith(".npy")]
        return _from_numpy(arrays[_pick(names, path)], path)


def _read_safetensors(path: Path) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(_pick(list(file.keys()), path))
        return tensor


def _read_pt(path: Path) -> torch.Tensor:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" not in str(error):
            raise
        # torch's own advice is to run the code in it.
        raise FileFormatError(
            f"Expected a tensor, or a dict of tensors, in {path}; it holds other objects, which are not "
            "loaded, as that could run code. Save the tensor alone: torch.save(latents, path)."
        ) from None
    if isinstance(content, dict):
        tensors = {str(k): value for k, value in content.items() if torch.is_tensor(value)}
        content = tensors[_pick(list(tensors), path)]
    if not torch.is_tensor(content):
        kind = type(content).__name__
        raise DataError(f"Expected a tensor, or a dict that holds one, in {path}; got a {kind}.")
    return content.detach()


def _from_numpy(array: npt.NDArray[Any], path: Path) -> torch.Tensor:
    if array.dtype.kind not in "buif":
        raise DataError(f"Expected numbers in {path}; got an array of dtype {array.dtype}.")
    # torch knows only the machine's own byte order, and no float that is longer than a double.
    dtype = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return torch.from_numpy(array.astype(dtype, copy=False))


def _pick(names: list[str], path: Path) -> str:
    """Choose the array to read from a file that can hold several."""
    if len(names) == 1:
        return names[0]
    if NAME in names:
        return NAME
    listed = (", ".join(names[:8]) or "none") + (
        f" and {len(names) - 8} more" if len(names) > 8 else ""
    )
    raise DataError(
        f"Expected one array in {path}, or among several one named {NAME!r}; got {listed}."
    )


def _write_npy(path: Path, array: torch.Tensor) -> None:
    with path.open("wb") as file:  # given a name, NumPy would append its own suffix
        np.save(file, array.numpy(), allow_pickle=False)


def _write_npz(path: Path, array: torch.Tensor) -> None:
    # Without allow_pickle=False, of which NumPy 1 would make one more array; a tensor's has no objects.
    arrays: dict[str, Any] = {NAME: array.numpy()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write_safetensors(path: Path, array: torch.Tensor) -> None:
    path.write_bytes(save({NAME: array}))  # save_file would make it unreadable for others


def _write_pt(path: Path, array: torch.Tensor) -> None:
    torch.save(array, path)


_READERS: dict[str, Callable[[Path], torch.Tensor]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_pt,
}
_WRITERS: dict[str, Callable[[Path, torch.Tensor], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".pt": _write_pt,
}
SUFFIXES = tuple(_READERS)
