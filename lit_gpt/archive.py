"""Archives of tensors in torch's format: saved, proved, and written one tensor after the other.

`write_archive` writes a flat dict as `torch.save` does, but with few tensors in memory at a time. The format is torch's
(its notes on serialization): an uncompressed zip archive with a pickle of the dict (`data.pkl`), in which a tensor is a
shape and the number N of a storage, and the bytes of every storage in `data/N`. They start at multiples of 64, so that
`torch.load(mmap=True)` can use them where they lie.
"""

import contextlib
import hashlib
import io
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.files import atomic

STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
}
"""The types that can be written, and the class that stands for each in the pickle."""

ROOT = "lit_model"
ALIGNMENT = 64
PIECE = 1 << 22
"""Elements that are converted to another type at once."""
CACHED = 1 << 18
"""Bytes that are summed up and copied at once: few enough to be in the processor's cache for the second of the two."""

READ = 1 << 20
"""Bytes that are read and summed up at once."""
THREADED = 1 << 26
"""Bytes of a file from which on several threads sum it up."""


def save(path: Path, value: Any) -> None:
    """`torch.save`, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's word for a full disk; the true reason is behind it
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def prove(path: Path) -> str:
    """Reads an archive and compares every record with its CRC-32, which `torch.load` does not; in some threads.

    Returns:
        An identity of the content: SHA-256 over name, size and CRC-32 of all records.

    Raises:
        ValueError: a record is not as it was written.
        Exception: whatever `zipfile` says of a file that is no archive, or not a whole one.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        archive = stack.enter_context(zipfile.ZipFile(file))
        records = archive.infolist()
        for record in records:
            archive.open(record).close()  # compares the name in front of the record with the one in the directory
        many = path.stat().st_size > THREADED
        run = stack.enter_context(ThreadPoolExecutor()).map if many else map
        for record, found in zip(records, run(partial(_crc, file.fileno()), records), strict=True):
            if found != record.CRC or record.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{record.filename} is not as it was written")
    names = (record.filename.partition("/")[2] for record in records)  # without the archive's own name
    lines = (f"{name} {record.file_size} {record.CRC:08x}\n" for name, record in zip(names, records, strict=True))
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _crc(file: int, record: zipfile.ZipInfo) -> int:
    """The CRC-32 of what stands in the file where torch will read it."""
    name, extra = struct.unpack("<HH", os.pread(file, 4, record.header_offset + 26))
    place = record.header_offset + 30 + name + extra
    crc, end = 0, place + record.file_size
    while place < end:
        data = os.pread(file, min(READ, end - place), place)
        if not data:
            break
        crc, place = zlib.crc32(data, crc), place + len(data)
    return crc


def write_archive(
    path: Path,
    layout: dict[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    progress: Callable[[int], Any] = lambda size: None,
    value: Any = None,
) -> str:
    """Writes `tensors` to `path`, in the order in which they come.

    Args:
        value: what the archive holds, with `layout` somewhere in it and no other tensors; None: `layout` itself.
        layout: every name with a tensor (on the meta device, say) of the shape and type that it is to have in the file.
        tensors: each name of `layout` once, with its values in any type.
        progress: is told how many bytes were written since the last call.

    Returns:
        An identity of the weights: SHA-256 over the name, type, shape and CRC-32 of every tensor, sorted by name.
    """
    numbers = {name: number for number, name in enumerate(layout)}
    lines = []
    with open(path, "wb") as file, ThreadPoolExecutor(1) as disk, zipfile.ZipFile(file, "w") as archive:
        flush = disk.submit(os.fsync, file.fileno())
        for name, text in (("data.pkl", _pickle(value or layout)), ("byteorder", sys.byteorder), ("version", "3\n")):
            archive.writestr(zipfile.ZipInfo(f"{ROOT}/{name}"), text)
        for name, tensor in tensors:
            dtype, header = layout[name].dtype, _header(f"{ROOT}/data/{numbers.pop(name)}", file.tell())
            with archive.open(header, "w", force_zip64=True) as record:
                for piece in tensor.detach().reshape(-1).split(PIECE):
                    data = memoryview(piece.to("cpu", dtype).contiguous().view(torch.uint8).numpy())
                    for start in range(0, len(data), CACHED):
                        record.write(data[start : start + CACHED])
                    progress(len(data))
            lines.append(f"{name} {dtype} {tuple(tensor.shape)} {header.CRC:08x}\n")
            if flush.done():  # keeps the disk at work, so that little is left to write at the end
                flush.result()
                flush = disk.submit(os.fsync, file.fileno())
        flush.result()
    if numbers:
        raise ValueError(f"nothing came for {', '.join(numbers)}")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _header(name: str, start: int) -> zipfile.ZipInfo:
    """The header of a record that begins at `start`, with an extra field that moves the content to a multiple of 64."""
    header = zipfile.ZipInfo(name)
    header.CRC = 0  # unknown as yet
    header.extra = b"FB\0\0"  # torch's own mark for padding
    padding = -(start + len(header.FileHeader(zip64=True))) % ALIGNMENT
    header.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    return header


class _Storage:
    """Stands for the bytes of record `data/<number>`."""

    def __init__(self, number: int, tensor: Tensor) -> None:
        self.id = ("storage", STORAGES[tensor.dtype], str(number), "cpu", tensor.numel())


class _Pickler(pickle.Pickler):
    """Pickles tensors by shape, numbering their storages as they come, and not their content."""

    count = 0

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        storage, self.count = _Storage(self.count, value), self.count + 1
        strides = torch.empty(value.shape, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (storage, 0, tuple(value.shape), strides, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        return value.id if isinstance(value, _Storage) else None


def _pickle(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()
