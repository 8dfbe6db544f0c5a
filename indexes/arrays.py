"""Arrays as bytes: NumPy's npy format, version 1.0, without pickle and without a copy."""

from __future__ import annotations

import io
import math
import re

import numpy as np
from numpy.typing import NDArray

from indexes.files import Buffer

_MAX_HEADER_BYTES = 4096
_PREFIX_BYTES = 10
# NumPy's own reader compiles the header as Python source; nothing that lies on a disk is compiled here.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<|](?:[iu][1248]|f[248]))', "
    rb"'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)


def npy(array: NDArray[np.generic]) -> list[Buffer]:
    """An array in NumPy's npy format: header, then its memory without a copy."""
    contiguous = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(contiguous))
    body = contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""
    return [header.getvalue(), body]


def parse_npy(buffer: Buffer) -> NDArray[np.generic]:
    """The array in such bytes, in place, not writable.

    Raises:
        ValueError: It is of another version, not of plain numbers, in Fortran order, or of another size than its header
            says.
    """
    head = bytes(buffer[:_MAX_HEADER_BYTES])
    match = _HEADER.match(head)
    if match is None or int.from_bytes(match[1], "little") != match.end() - _PREFIX_BYTES:
        raise ValueError("no header of a plain array in npy version 1.0")
    dtype = np.dtype(match[2].decode())
    shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
    count = math.prod(shape)
    if len(buffer) != match.end() + count * dtype.itemsize:
        raise ValueError(f"{len(buffer):,} bytes for shape {shape} of {dtype}")
    return np.frombuffer(buffer, dtype=dtype, count=count, offset=match.end()).reshape(shape)
