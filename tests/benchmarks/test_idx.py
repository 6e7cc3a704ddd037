import struct

import numpy as np
import pytest

from latentfit.errors import FileFormatError
from latentfit_bench.idx import parse_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    """Write IDX from its specification, independently of the parser."""
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim])
    header += b"".join(struct.pack(">I", size) for size in array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (2, 3, 4)])
def test_what_is_written_is_read(dtype, shape):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    parsed = parse_idx(idx_bytes(array))
    assert parsed.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(parsed, array)


def test_a_file_cut_anywhere_or_too_long_is_refused():
    content = idx_bytes(np.arange(6, dtype="u1").reshape(2, 3))
    for length in range(len(content)):
        with pytest.raises(FileFormatError, match="Expected"):
            parse_idx(content[:length])
    with pytest.raises(FileFormatError, match="18 bytes; got 19"):
        parse_idx(content + b"\0")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"\1\0\x08\1", b"\0\0\x07\1"])
def test_another_format_is_named(content):
    with pytest.raises(FileFormatError, match="IDX header"):
        parse_idx(content, name="labels")


def test_a_huge_announced_shape_allocates_nothing():
    content = bytes([0, 0, 0x0E, 3]) + struct.pack(">III", 2**32 - 1, 2**32 - 1, 2**32 - 1)
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        parse_idx(content)
