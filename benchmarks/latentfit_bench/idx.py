"""Reader of the IDX format, in which MNIST is published.

The format (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/): two zero bytes, one byte
for the element type, one for the number of dimensions, each dimension as a big-endian uint32, and
the elements, big-endian, in C order.
"""

import math
import struct

import numpy as np

from latentfit.errors import FileFormatError

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def parse_idx(content: bytes, *, name: str = "the IDX data") -> np.ndarray:
    """Parse one uncompressed IDX file.

    Args:
        content: The whole file.
        name: What to call it in error messages.

    Returns:
        An array with the file's shape and element type, in the machine's byte order.

    Raises:
        FileFormatError: If the header is not IDX, or the length differs from what it announces.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise FileFormatError(
            f"Expected {name} to start with an IDX header (two zero bytes, then a type of "
            f"{', '.join(f'0x{code:02X}' for code in _DTYPES)}); got {content[:4]!r}."
        )
    dtype = np.dtype(_DTYPES[content[2]])
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise FileFormatError(
            f"Expected {name} to have a header of {start} bytes; got {len(content)} bytes. "
            "The file is truncated: fetch it again."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise FileFormatError(
            f"Expected {name}, of shape {shape}, to have {expected} bytes; got {len(content)}. "
            "The file is truncated or damaged: fetch it again."
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))
