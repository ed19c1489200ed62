"""What is written tensor by tensor is what `torch.save` would have written."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from lit_gpt import archive
from lit_gpt.archive import write_archive


def test_archive_is_a_good_zip_and_a_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PIECE", 7)
    monkeypatch.setattr(archive, "CACHED", 12)
    state = {
        "a": torch.randn(5, 7),
        "b.c": torch.randn(3).bfloat16(),
        "turned": torch.randn(4, 6).half().t(),
        "every other": torch.randn(10)[::2],
        "number": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
    path, told = tmp_path / "x.pth", []
    layout = {name: tensor.to("meta") for name, tensor in state.items()}
    write_archive(path, layout, reversed(state.items()), told.append)
    assert sum(told) == sum(tensor.nbytes for tensor in state.values())
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        for name, tensor in state.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor)
        assert list(loaded) == list(state)
    with zipfile.ZipFile(path) as opened, open(path, "rb") as file:
        assert opened.testzip() is None
        for record in opened.infolist():
            file.seek(record.header_offset + 26)
            content = record.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            assert "data/" not in record.filename or content % 64 == 0
    written = path.read_bytes()
    write_archive(path, layout, reversed(state.items()))
    assert path.read_bytes() == written
    with pytest.raises(ValueError, match="nothing came for empty"):
        write_archive(path, layout, list(state.items())[:-1])
