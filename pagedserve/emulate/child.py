# SPDX-License-Identifier: Apache-2.0
"""Runs one launcher in a process of its own, under a sanitizer. Run by path; needs the standard library alone.

The request is a file: a line of JSON, then the params struct, then every buffer, each as long as the JSON says. Buffers
go into memory of their own, so that reading past one's end is seen, and are written back to the file afterwards.
The last line of standard output is the answer in JSON.
"""

import ctypes
import json
import sys

ALIGNMENT = 256


def main(path: str) -> None:
    with open(path, "r+b") as file:
        request = json.loads(file.readline())
        params = ctypes.create_string_buffer(file.read(request["params_bytes"]), request["params_bytes"])
        begin = file.tell()
        libc = ctypes.CDLL(None)
        libc.free.argtypes = [ctypes.c_void_p]
        buffers = []
        for size in request["buffers"]:
            pointer = ctypes.c_void_p()
            if libc.posix_memalign(ctypes.byref(pointer), ctypes.c_size_t(ALIGNMENT), ctypes.c_size_t(size)):
                raise MemoryError(f"no memory for a buffer of {size} bytes")
            ctypes.memmove(pointer, file.read(size), size)
            buffers.append(pointer)
        for offset, number, inside, name in request["pointers"]:
            # For whoever reads a report about these addresses.
            print(f"pagedserve buffer {name} {buffers[number].value:#x}", file=sys.stderr)
            address = ctypes.c_uint64(buffers[number].value + inside)
            ctypes.memmove(ctypes.byref(params, offset), ctypes.byref(address), 8)
        answer = run(request, params)
        file.seek(begin)
        for pointer, size in zip(buffers, request["buffers"]):  # noqa: B905
            file.write(ctypes.string_at(pointer, size))
    print(json.dumps(answer), flush=True)


def run(request: dict, params: object) -> dict:
    library = ctypes.CDLL(request["library"])
    library.pagedserve_emulator_error.restype = ctypes.c_char_p
    library.pagedserve_emulator_error_kind.restype = ctypes.c_char_p
    library.pagedserve_emulator_configure(ctypes.create_string_buffer(bytes.fromhex(request["config"])))
    result = getattr(library, request["launcher"])(ctypes.byref(params), None)
    counters = (ctypes.c_uint64 * len(request["counters"]))()
    library.pagedserve_emulator_counters(counters)
    return {
        "result": result,
        "kind": library.pagedserve_emulator_error_kind().decode(),
        "error": library.pagedserve_emulator_error().decode(),
        "counters": dict(zip(request["counters"], counters)),  # noqa: B905
    }


main(sys.argv[1])
