"""A safetensors header says nothing that is not held against the file."""

import json

import pytest

from max_mistral.errors import UserError
from max_mistral.weights.safetensors_file import stored_tensors

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
F16 = {"dtype": "F16", "shape": [2, 2], "data_offsets": [8, 16]}
GOOD = {"a": F32, "b": F16}


def write(path, header, data=b"\0" * 16, header_size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if header_size is None else header_size
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def test_a_good_file(tmp_path):
    path = write(tmp_path / "m.safetensors", {"__metadata__": {"format": "pt"}} | GOOD)
    found = stored_tensors([path])
    start = path.stat().st_size - 16
    assert (found["a"].offset, found["a"].size) == (start, 8)
    assert (found["b"].offset, found["b"].size) == (start + 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": F16 | {"data_offsets": [4, 0]}}, r"b is F16 .* but has -4"),
        ({"b": F16 | {"data_offsets": [0, 4]}}, r"b is F16 .* but has 4"),
        ({"b": F16 | {"data_offsets": [0, 8]}}, "b overlaps"),
        ({"b": F16 | {"data_offsets": [4, 12]}}, "b overlaps"),
        ({"b": F16 | {"data_offsets": [9, 17]}}, "b follows a gap"),
        ({"b": F16 | {"data_offsets": [-8, 0]}}, r"data_offsets = \[-8, 0\]"),
        ({"b": F16 | {"data_offsets": [8.0, 16.0]}}, "data_offsets"),
        ({"b": F16 | {"data_offsets": [8, 16, 24]}}, "data_offsets"),
        ({"b": F16 | {"data_offsets": [2**64 - 64, 2**64 - 56]}}, "data_offsets"),
        ({"b": F16 | {"data_offsets": None}}, "data_offsets = None"),
        # A norm under another dtype.
        ({"a": F32 | {"dtype": "F16"}}, "a is F16 of shape .* 4 bytes, but has 8"),
        ({"a": F32 | {"dtype": "F31"}}, "unknown dtype 'F31'"),
        ({"a": F32 | {"dtype": ["F32"]}}, "unknown dtype"),
        ({"a": F32 | {"shape": [3]}}, "12 bytes, but has 8"),
        ({"a": F32 | {"shape": [-2]}}, "shape"),
        ({"a": F32 | {"shape": [True, 2]}}, "shape"),
        ({"a": F32 | {"shape": "2"}}, "shape"),
        ({"a": F32 | {"shape": [1] * 1000}}, "shape"),
        ({"a": 7}, "unknown dtype"),
    ],
)
def test_a_span_is_what_shape_and_dtype_take(tmp_path, changes, message):
    path = write(tmp_path / "m.safetensors", GOOD | changes)
    with pytest.raises(UserError, match=message):
        stored_tensors([path])


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"a":' * 100_000],
    ids=["empty", "open", "list", "null", "no tensors", "no text", "deep"],
)
def test_a_header_that_is_none(tmp_path, header):
    with pytest.raises(UserError, match="not a complete safetensors file"):
        stored_tensors([write(tmp_path / "m.safetensors", header)])


@pytest.mark.parametrize("header", [{}, {"__metadata__": {"format": "pt"}}])
def test_a_file_without_tensors(tmp_path, header):
    path = write(tmp_path / "m.safetensors", header, data=b"")
    with pytest.raises(UserError, match="it has no tensors"):
        stored_tensors([path])


def test_a_name_that_is_there_twice(tmp_path):
    one = (
        json.dumps({"a": F32})[:-1] + ", " + json.dumps({"a": F32 | {"shape": [2]}})[1:]
    )
    path = write(tmp_path / "m.safetensors", one.encode(), b"\0" * 8)
    with pytest.raises(UserError, match="'a' is there twice"):
        stored_tensors([path])
    paths = [write(tmp_path / f"{n}.safetensors", GOOD) for n in "xy"]
    with pytest.raises(UserError, match=r"a is in .*y\.safetensors and in .*x\.safe"):
        stored_tensors(paths)


@pytest.mark.parametrize("size", [2**64 - 1, 2**40, 100_000_001, 9999])
def test_a_header_that_is_longer_than_it_can_be(tmp_path, size):
    path = write(tmp_path / "m.safetensors", GOOD, header_size=size)
    with pytest.raises(UserError, match=f"its header {size}"):
        stored_tensors([path])


def test_bytes_behind_the_last_tensor(tmp_path):
    path = write(tmp_path / "m.safetensors", GOOD, b"\0" * 17)
    with pytest.raises(UserError, match="its header makes it"):
        stored_tensors([path])


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    path = write(tmp_path / "m.safetensors", GOOD)
    tensor = stored_tensors([path])["b"]
    assert tensor.read().size == 8
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="became shorter"):
        tensor.read()


def test_a_pipe_is_not_waited_for(pipe):
    with pytest.raises(UserError, match=r"model\.safetensors is .* no plain file"):
        stored_tensors([pipe("model.safetensors")])


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="it is no plain file"):
        stored_tensors([tmp_path])


def test_a_link_to_a_file_is_one(tmp_path):
    path = write(tmp_path / "m.safetensors", GOOD)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert stored_tensors([link]).keys() == GOOD.keys()
