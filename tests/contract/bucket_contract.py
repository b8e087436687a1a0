"""What every store in a bucket must keep, beyond the contract of all stores: uploads in parts."""

from __future__ import annotations

import numpy as np
import pytest

from anabranch.engine.errors import IntegrityError

from .store_contract import RUN_ID, StoreContract


def pattern(size: int) -> bytes:
    """Bytes that show where they were."""
    return np.arange(-(-size // 4), dtype=">u4").tobytes()[:size]


class BucketContract(StoreContract):
    part: int
    """Bytes of a part of an upload to the store."""
    piece: int
    """Bytes that a test writes at once."""

    @pytest.mark.parametrize(("parts", "more"), [(1, -1), (1, 0), (1, 1), (4, 0), (4, 12345)])
    def test_large_files_go_in_parts_and_come_back(self, store, parts, more):
        size = parts * self.part + more
        data = pattern(size)
        writer = store.writer("big", size, {"plan_id": "p"}, RUN_ID)
        for start in range(0, size, self.piece):
            writer.write(memoryview(data)[start : start + self.piece])
        assert store.list() == []
        with pytest.raises(FileNotFoundError):
            store.info("big")
        writer.commit()
        info = store.info("big")
        assert info.size == size
        assert self.read(store, "big", 0, size, info.version) == data
        assert self.read(store, "big", size - 7, 7, info.version) == data[-7:]
        assert store.attributes("big") == {"plan_id": "p"}
        assert store.leftovers(["big"]) == ()

    def test_a_short_upload_is_not_completed(self, store):
        writer = store.writer("big", 2 * self.part, {}, RUN_ID)
        writer.write(bytes(2 * self.part - 1))
        with pytest.raises(IntegrityError):
            writer.commit()
        writer.discard()
        assert store.list() == []
