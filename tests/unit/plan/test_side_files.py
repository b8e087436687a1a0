"""Files beside the weights, read whole or in pieces."""

from __future__ import annotations

from anabranch.engine.plan.side_files import PIECE_BYTES, SideFile
from anabranch.engine.storage.memory import MemoryStore


def test_a_file_of_several_pieces_is_read_as_it_is() -> None:
    store, data = MemoryStore(), bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"end"
    store.replace("tokenizer.json", data)
    assert SideFile(store, "tokenizer.json", store.info("tokenizer.json")).read() == data
