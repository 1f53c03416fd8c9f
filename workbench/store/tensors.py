"""Writing safetensors files whose size and sha256 are known before the first byte is written.

    8 bytes   length of the header, little-endian
    header    JSON: name → dtype, shape, data_offsets; filled up with spaces to a multiple of 8
    data      the arrays, one after the other

Format: https://github.com/huggingface/safetensors#format. The bytes are those `save_file` writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

_DTYPES = {
    np.dtype(numpy): name
    for numpy, name in {
        "uint64": "U64",
        "int64": "I64",
        "float64": "F64",
        "float32": "F32",
        "uint32": "U32",
        "int32": "I32",
        "float16": "F16",
        "uint16": "U16",
        "int16": "I16",
        "int8": "I8",
        "uint8": "U8",
        "bool": "BOOL",
    }.items()
}
_ORDER = list(_DTYPES)
"""The order of the arrays in a file: by dtype as here, then by name."""


class TensorFile:
    """A safetensors file to be: `bytes` long, of this `sha256`. The arrays must not change."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        ordered = sorted(arrays, key=lambda name: (_ORDER.index(arrays[name].dtype), name))
        self._arrays = {name: np.asarray(arrays[name], order="C") for name in ordered}
        self._header = _header(self._arrays)
        self.bytes = len(self._header) + sum(a.nbytes for a in self._arrays.values())
        digest = hashlib.sha256()
        for part in self._parts():
            digest.update(part)
        self.sha256 = digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write the file."""
        with path.open("wb") as file:
            for part in self._parts():
                file.write(part)

    def _parts(self) -> Iterator[bytes]:
        yield self._header
        for array in self._arrays.values():
            yield array.reshape(-1).view(np.uint8).data  # type: ignore[misc]  # bytes-like, not copied


def _header(arrays: Mapping[str, np.ndarray]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    start = 0
    for name, array in arrays.items():
        entries[name] = {
            "dtype": _DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
