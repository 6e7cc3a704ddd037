"""What encoders return: one tensor is taken, anything else is told."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch

from latentfit.errors import EncoderOutputError
from latentfit.outputs import from_array, single_tensor

Z = torch.arange(6.0).view(3, 2)
Pair = namedtuple("Pair", "z extra")


@pytest.mark.parametrize(
    "output",
    [
        Z,
        Z.numpy(),
        (Z,),
        [Z],
        (Z, None),
        (None, "loss", Z.numpy()),
        {"z": Z},
        {0: Z, "name": "x"},
        OrderedDict(z=Z),
        Pair(Z, None),
    ],
)
def test_the_one_tensor_is_taken(output: object) -> None:
    assert torch.equal(single_tensor(output), Z)


@pytest.mark.parametrize(
    "output, seen",
    [
        ((Z, Z), r"tuple with 2 of them \(0: Tensor \(3, 2\) torch.float32, 1: Tensor"),
        ([], r"list with 0 of them \(empty\)"),
        ({"mu": Z, "logvar": Z.numpy()}, r"'mu': Tensor \(3, 2\) .* 'logvar': ndarray \(3, 2\)"),
        ({"a": 1, "b": None}, r"dict with 0 of them \('a': int, 'b': NoneType\)"),
        ((Pair(Z, None),), r"tuple with 0 of them \(0: Pair\)"),
        (None, "got NoneType"),
        (3.0, "got float"),
        (np.float64(3), "got float64"),
        (torch.distributions.Normal(0, 1), "got Normal"),
        ("text", "got str"),
    ],
)
def test_anything_else_is_told_as_it_was_seen(output: object, seen: str) -> None:
    with pytest.raises(EncoderOutputError, match=seen):
        single_tensor(output)


def test_the_role_is_named() -> None:
    with pytest.raises(EncoderOutputError, match="Expected the decoder"):
        single_tensor(None, role="decoder")


@pytest.mark.parametrize("dtype", [object, "U3", "datetime64[s]", [("a", "f4")]])
def test_arrays_without_numbers_are_refused(dtype: object) -> None:
    with pytest.raises(EncoderOutputError, match="array of numbers"):
        single_tensor(np.zeros(3, dtype=dtype))


def read_only() -> np.ndarray:
    array = Z.numpy().copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "array",
    [
        read_only(),
        Z.numpy()[::-1][::-1],
        np.asfortranarray(Z.numpy()),
        Z.numpy().astype(">f4"),
        np.lib.stride_tricks.as_strided(np.arange(6, dtype="f4"), (3, 2), (8, 4)),
    ],
    ids=["read-only", "reversed", "fortran", "big-endian", "strided"],
)
def test_memory_that_tensors_cannot_share_is_copied(array: np.ndarray) -> None:
    assert torch.equal(from_array(array), Z)


def test_a_scalar_array_stays_a_scalar() -> None:
    assert from_array(np.array(3.0)).shape == ()
