"""Arrays as bytes: what NumPy reads and writes, and nothing that would have to be compiled or trusted."""

from __future__ import annotations

import builtins
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from indexes.arrays import npy, parse_npy

KINDS = ["u1", "i1", "<u2", "<i4", "<i8", "<u8", "<f4", "<f8"]


def written(array: np.ndarray) -> bytes:
    return b"".join(bytes(piece) for piece in npy(array))


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


some_arrays = st.sampled_from(KINDS).flatmap(
    lambda kind: arrays_of.arrays(np.dtype(kind), arrays_of.array_shapes(min_dims=1, max_dims=3, min_side=0))
)


@given(array=some_arrays)
def test_numpy_reads_what_is_written_and_what_numpy_writes_is_read(array):
    assert written(array) == saved(array)
    for back in (parse_npy(written(array)), parse_npy(saved(array)), np.load(io.BytesIO(written(array)))):
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes()


def test_an_array_in_another_order_in_memory_is_written_row_by_row():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    for view in (array.T, array[:, ::2], np.asfortranarray(array)):
        assert (parse_npy(written(view)) == view).all()


def test_an_array_without_dimensions_becomes_one_of_a_single_element():
    assert parse_npy(written(np.array(7, dtype=np.int64))).tolist() == [7]


def test_what_is_read_lies_in_the_buffer_and_cannot_be_written():
    content = bytearray(written(np.arange(3)))
    view = memoryview(content).toreadonly()
    array = parse_npy(view)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    content[-8] = 9
    assert array.tolist() == [0, 1, 9]


def test_writing_copies_nothing():
    array = np.arange(1000, dtype=np.float32)
    assert np.shares_memory(np.frombuffer(npy(array)[1], np.float32), array)


def with_header(header: bytes, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    header = header + b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + body


GOOD = b"{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }"
BODY = bytes(8)


def test_the_header_that_the_refused_ones_are_made_from_is_a_good_one():
    assert parse_npy(with_header(GOOD, BODY)).tolist() == [0, 0]


HOSTILE = {
    "nothing": b"",
    "no magic": b"NUMPY" + with_header(GOOD, BODY),
    "another version": with_header(GOOD, BODY, b"\x02\x00"),
    "objects": with_header(GOOD.replace(b"<i4", b"|O"), BODY),
    "a structure": with_header(GOOD.replace(b"'<i4'", b"[('a', '<i4')]"), BODY),
    "text": with_header(GOOD.replace(b"<i4", b"<U2"), BODY),
    "big endian": with_header(GOOD.replace(b"<i4", b">i4"), BODY),
    "complex": with_header(GOOD.replace(b"<i4", b"<c8"), BODY),
    "a float of one byte": with_header(GOOD.replace(b"<i4", b"<f1"), BODY),
    "fortran order": with_header(GOOD.replace(b"False", b"True"), BODY),
    "an expression": with_header(GOOD.replace(b"(2,)", b"(1+1,)"), BODY),
    "a call": with_header(GOOD.replace(b"(2,)", b"(__import__('os').system('true'),)"), BODY),
    "deep nesting": with_header(b"(" * 2000 + b")" * 2000, BODY),
    "a negative size": with_header(GOOD.replace(b"(2,)", b"(-2,)"), BODY),
    "too large": with_header(GOOD.replace(b"(2,)", b"(3,)"), BODY),
    "too small": with_header(GOOD.replace(b"(2,)", b"(1,)"), BODY),
    "larger than any memory": with_header(GOOD.replace(b"(2,)", b"(4611686018427387904, 4)"), BODY),
    "sizes that overflow to the right one": with_header(GOOD.replace(b"(2,)", b"(9223372036854775809, 2)"), BODY),
    "numbers with a space inside": with_header(GOOD.replace(b"(2,)", b"(1 2,)"), BODY),
    "another key": with_header(GOOD.replace(b"'shape'", b"'more': 1, 'shape'"), BODY),
    "cut in the header": with_header(GOOD, BODY)[:40],
    "cut in the body": with_header(GOOD, BODY)[:-1],
    "one byte more": with_header(GOOD, BODY + b"\x00"),
    "a wrong length of the header": with_header(GOOD, BODY).replace(b"\x01\x00v\x00", b"\x01\x00w\x00"),
    "a header longer than any of ours": with_header(GOOD + b" " * 5000, BODY),
    "a pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_foreign_file_is_refused(name):
    with pytest.raises(ValueError, match=r"no header of a plain array|bytes for shape|invalid"):
        parse_npy(HOSTILE[name])


def test_nothing_is_compiled_or_evaluated(monkeypatch):
    content = [written(np.arange(3, dtype=np.float32)), *HOSTILE.values()]
    sizes = []

    def refuse(*arguments, **options):
        raise AssertionError("compiled")

    with monkeypatch.context() as patch:
        for name in ("compile", "eval", "exec"):
            patch.setattr(builtins, name, refuse)
        for one in content:
            try:
                sizes.append(parse_npy(one).size)
            except ValueError:
                sizes.append(-1)
    assert sizes == [3, *[-1] * len(HOSTILE)]


@given(place=st.integers(0, 79), value=st.integers(0, 255))
def test_a_header_with_any_byte_altered_gives_an_array_of_the_right_size_or_a_value_error(place, value):
    content = bytearray(with_header(GOOD, BODY))
    content[place] = value
    try:
        array = parse_npy(bytes(content))
    except ValueError:
        return
    assert array.nbytes == len(BODY)
