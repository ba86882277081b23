# SPDX-License-Identifier: Apache-2.0
"""The GGUF reader: it agrees with the gguf package, and nothing a file says can make it crash, hang or take memory."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedserve.errors import ModelError
from pagedserve.models.gguf_file import GgufFile
from pagedserve.models.load import load_model


def test_it_agrees_with_the_gguf_package(tiny_gguf):
    import gguf

    ours, theirs = GgufFile(tiny_gguf), gguf.GGUFReader(tiny_gguf)
    their_metadata = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert set(ours.metadata) == set(their_metadata)
    for key, value in ours.metadata.items():
        assert (list(value) if not isinstance(value, (str, int, float)) else value) == their_metadata[key]
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(tensor.shape[::-1].tolist())
        assert info.offset == tensor.data_offset
        assert np.array_equal(ours.data(tensor.name).reshape(-1), tensor.data.view(np.uint8).reshape(-1))


def test_the_demo_model_opens_at_once(demo_path):
    fastest = min(_seconds(lambda: GgufFile(demo_path)) for _ in range(3))
    assert fastest < 0.5
    file = GgufFile(demo_path)
    assert len(file.tensors) == 272
    assert len(file.strings("tokenizer.ggml.tokens")) == 49152
    assert file.strings("tokenizer.ggml.tokens")[2] == "<|im_end|>"


def test_typed_lookups_name_the_key(tiny_gguf):
    file = GgufFile(tiny_gguf)
    assert file.integer("missing", 7) == 7
    for lookup, key in [
        (file.integer, "missing"),
        (file.integer, "tokenizer.ggml.model"),
        (file.number, "tokenizer.ggml.tokens"),
        (file.text, "llama.block_count"),
        (file.strings, "tokenizer.ggml.token_type"),
        (file.numbers, "tokenizer.ggml.tokens"),
    ]:
        with pytest.raises(ModelError, match=key):
            lookup(key)
    with pytest.raises(ModelError, match="true or false"):
        file.flag("tokenizer.ggml.model", True)


# Lies, each with the words its refusal must hold. A file is: magic, version, tensor count, key count, keys, tensors.


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _header(num_tensors: int, num_keys: int, *, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, num_tensors, num_keys)


def _tensor(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def _with_tensors(*tensors: bytes, data: int = 4096) -> bytes:
    header = _header(len(tensors), 0) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


HUGE = (1 << 64) - 1
LIES = {
    "empty": (b"", "cannot be opened"),
    "short": (b"GG", "begins with"),
    "only magic": (b"GGUF", "the version"),
    "wrong magic": (_header(0, 0, magic=b"GGML"), "begins with b'GGML'"),
    "version 1": (_header(0, 0, version=1), "version 1; supported: 2 and 3"),
    "big-endian": (_header(0, 0, version=3 << 24), "big-endian"),
    "tensor count": (_header(HUGE, 0), "the number of tensors is 18446744073709551615"),
    "key count": (_header(0, HUGE), "the number of metadata keys"),
    "one tensor too many": (_header(1, 0) + bytes(8), "the number of tensors is 1"),
    "key length": (_header(0, 1) + struct.pack("<Q", HUGE) + bytes(64), "the length of the name of metadata key 0"),
    "key too long": (_header(0, 1) + _text(b"k" * 70_000) + bytes(64), "at most 65535"),
    "key not UTF-8": (_header(0, 1) + _text(b"\xff\xfe") + struct.pack("<IB", 0, 0), "not UTF-8"),
    "key twice": (_header(0, 2) + 2 * (_text(b"k") + struct.pack("<IB", 0, 7)) + bytes(8), "k stands twice"),
    "value type": (_header(0, 1) + _text(b"k") + struct.pack("<IQ", 99, 0), "k has value type 99"),
    "string length": (_header(0, 1) + _text(b"k") + struct.pack("<IQ", 8, HUGE), "the length of k"),
    "string not UTF-8": (_header(0, 1) + _text(b"k") + struct.pack("<I", 8) + _text(b"\xc3\x28"), "k is not UTF-8"),
    "array of arrays": (_header(0, 1) + _text(b"k") + struct.pack("<IIQIQ", 9, 9, 1, 9, 0), "array of value type 9"),
    "array type": (_header(0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 77, 1), "array of value type 77"),
    "array length": (_header(0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 6, 1 << 62), "the length of k"),
    "strings count": (_header(0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 60), "the length of k"),
    "strings end": (_header(0, 1) + _text(b"k") + struct.pack("<IIQQ", 9, 8, 1, 50), "k ends past the end"),
    "strings begin": (_header(0, 1) + _text(b"k") + struct.pack("<IIQQQ", 9, 8, 2, 50, 0), r"k\[1\] begins past"),
    "alignment 0": (_header(0, 1) + _text(b"general.alignment") + struct.pack("<II", 4, 0), "alignment is 0"),
    "alignment 33": (_header(0, 1) + _text(b"general.alignment") + struct.pack("<II", 4, 33), "alignment is 33"),
    "alignment text": (
        _header(0, 1) + _text(b"general.alignment") + struct.pack("<I", 8) + _text(b"x"),
        "whole number",
    ),
    "no dimensions": (_with_tensors(_tensor(b"t", [], 0, 0)), "t has 0 dimensions"),
    "many dimensions": (_with_tensors(_tensor(b"t", [1] * 9, 0, 0)), "t has 9 dimensions"),
    "empty dimension": (_with_tensors(_tensor(b"t", [0], 0, 0)), "none of the sizes 0"),
    "overflow": (_with_tensors(_tensor(b"t", [1 << 63, 1 << 63, 4], 0, 0)), "t ends at byte"),
    "tensor type": (_with_tensors(_tensor(b"t", [32], 16, 0)), r"GGML type 16; supported: F32 \(0\)"),
    "partial block": (_with_tensors(_tensor(b"t", [33, 32], 3, 0)), "multiples of 32"),
    "offset": (_with_tensors(_tensor(b"t", [32], 0, 1 << 63)), "ends at byte"),
    "unaligned": (_with_tensors(_tensor(b"t", [32], 0, 8)), "not a multiple of 32"),
    "overlap": (_with_tensors(_tensor(b"a", [32], 0, 0), _tensor(b"b", [32], 0, 64)), "b overlaps tensor a"),
    "same place": (_with_tensors(_tensor(b"a", [32], 0, 0), _tensor(b"b", [32], 0, 0)), "overlaps"),
    "tensor twice": (_with_tensors(_tensor(b"a", [32], 0, 0), _tensor(b"a", [32], 0, 128)), "a stands twice"),
    "truncated": (_with_tensors(_tensor(b"t", [4096], 0, 0), data=100), "t ends at byte"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_by_name(name, tmp_path):
    content, message = LIES[name]
    path = tmp_path / "lie.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        GgufFile(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot be opened"):
        GgufFile(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="cannot be opened"):
        GgufFile(tmp_path)


def test_token_text_that_is_not_utf8_is_refused_when_read(tmp_path):
    path = tmp_path / "text.gguf"
    array = struct.pack("<IIQ", 9, 8, 2) + _text(b"fine") + _text(b"\xf0\x28")
    path.write_bytes(_header(0, 1) + _text(b"words") + array)
    words = GgufFile(path).strings("words")
    assert len(words) == 2
    with pytest.raises(ModelError, match=r"words\[1\] is not UTF-8"):
        list(words)


# Whatever is done to a good file: ModelError or a file that reads, soon, and in little memory.


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_crashes(tiny_gguf, tmp_path_factory, data):
    content = bytearray(tiny_gguf.read_bytes())
    header_bytes = min(info.offset for info in GgufFile(tiny_gguf).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header_bytes - 1))
        kind = data.draw(st.sampled_from(["byte", "number", "cut", "insert", "delete"]))
        if kind == "byte":
            content[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif kind == "number":
            number = data.draw(st.sampled_from([0, 1, 1 << 31, 1 << 32, (1 << 63) - 1, HUGE, len(content)]))
            content[at : at + 8] = struct.pack("<Q", number)
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=16))
        else:
            del content[at : at + data.draw(st.integers(1, 16))]
    path = tmp_path_factory.mktemp("damaged") / "damaged.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        _read_everything(path)
    except ModelError:
        pass
    finally:
        seconds, (_, peak_bytes) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        path.unlink()
    assert seconds < 2
    assert peak_bytes < 64 * len(content) + (1 << 20)


def _read_everything(path) -> None:
    file = GgufFile(path)
    for value in file.metadata.values():
        if not isinstance(value, (str, int, float)):
            list(value)
    for name in file.tensors:
        file.data(name)
    load_model(path).tokenizer.encode("hello world 12")


def _seconds(call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
