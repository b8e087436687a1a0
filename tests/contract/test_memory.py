from __future__ import annotations

import pytest

from anabranch.engine.storage.memory import MemoryStore
from anabranch.engine.storage.opening import open_store

from .store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()


def test_one_url_is_one_store_in_a_process():
    store = open_store("memory://Shared//model/")
    assert store.url == "memory://Shared/model"
    assert open_store("memory://Shared/model") is store
    assert open_store("memory://other") is not store
