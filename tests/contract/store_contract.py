"""What every store must do; each store's test file subclasses this and says how to make one."""

from __future__ import annotations

import threading

import pytest

from anabranch.engine.errors import InputError, IntegrityError
from anabranch.engine.storage.protocol import Store, Writer

RUN_ID = "run1"


class StoreContract:
    """Subclasses define the fixture `store`: a fresh, empty store."""

    keeps_attributes = True
    names_leftovers = True

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    def write(self, store: Store, name: str, *pieces: bytes, attributes=None) -> None:
        writer = store.writer(name, sum(map(len, pieces)), attributes or {}, RUN_ID)
        for piece in pieces:
            writer.write(piece)
        writer.commit()
        writer.discard()

    def read(self, store: Store, name: str, offset: int, count: int, version: str | None = None) -> bytes:
        buffer = bytearray(b"?" * count)
        store.read_into(name, offset, memoryview(buffer), version)
        return bytes(buffer)

    def test_follows_the_protocols(self, store):
        assert isinstance(store, Store)
        writer = store.writer("a", 0, {}, RUN_ID)
        assert isinstance(writer, Writer)
        writer.discard()

    def test_an_empty_store_has_nothing(self, store):
        assert store.list() == []
        assert store.list("folder") == []
        for ask in (store.info, store.read_bytes, lambda name: self.read(store, name, 0, 1)):
            with pytest.raises(FileNotFoundError):
                ask("a")
        store.delete("a")
        assert store.leftovers(["a"]) == ()

    def test_a_created_file_is_there_whole(self, store):
        assert store.create("a", b"12345")
        assert store.read_bytes("a") == b"12345"
        assert store.info("a").size == 5
        assert self.read(store, "a", 1, 3) == b"234"
        assert self.read(store, "a", 1, 3, store.info("a").version) == b"234"
        assert self.read(store, "a", 5, 0) == b""

    def test_create_never_replaces(self, store):
        assert store.create("folder/plan.json", b"first")
        assert not store.create("folder/plan.json", b"second, longer")
        assert store.read_bytes("folder/plan.json") == b"first"
        assert store.list("folder") == ["folder/plan.json"]

    def test_one_of_many_creators_wins(self, store):
        results: dict[int, bool] = {}
        gate = threading.Barrier(6)

        def race(number: int) -> None:
            gate.wait()
            results[number] = store.create("plan", bytes([number]) * 1000)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [number for number, won in results.items() if won]
        assert len(winners) == 1
        assert store.read_bytes("plan") == bytes(winners) * 1000

    def test_replace_creates_and_replaces(self, store):
        store.replace("sub/x", b"old")
        store.replace("sub/x", b"newer")
        assert store.read_bytes("sub/x") == b"newer"
        store.replace("empty", b"")
        assert store.read_bytes("empty") == b""
        assert store.info("empty").size == 0

    def test_a_changed_file_has_another_version(self, store):
        store.replace("x", b"aaa")
        old = store.info("x").version
        assert self.read(store, "x", 0, 3, old) == b"aaa"
        store.replace("x", b"bbbb")
        new = store.info("x").version
        assert new != old
        assert store.info("x").version == new
        assert self.read(store, "x", 0, 4, new) == b"bbbb"

    def test_a_file_that_changed_before_the_first_read_is_an_input_error(self, store):
        store.replace("x", b"aaa")
        old = store.info("x").version
        store.replace("x", b"bbbb")
        with pytest.raises(InputError, match=r"x.*changed"):
            self.read(store, "x", 0, 3, old)

    def test_reading_past_the_end_is_an_input_error(self, store):
        store.replace("x", b"12345")
        for version in (None, store.info("x").version):
            for offset, count in ((3, 3), (5, 1), (100, 2)):
                with pytest.raises(InputError, match="5"):
                    self.read(store, "x", offset, count, version)

    def test_whole_reads_have_a_limit(self, store):
        store.replace("x", b"12345")
        assert store.read_bytes("x", 5) == b"12345"
        with pytest.raises(InputError, match="at most 4"):
            store.read_bytes("x", 4)

    def test_list_names_only_the_files_of_one_folder(self, store):
        for name in ("b", "a", "f/c", "f/a", "f/deep/x", "fx/y"):
            store.replace(name, b"1")
        assert store.list() == ["a", "b"]
        assert store.list("f") == ["f/a", "f/c"]
        assert store.list("f/deep") == ["f/deep/x"]

    def test_names_need_no_escaping_by_the_caller(self, store):
        name = "f/ä #?%41 +.json"
        store.replace(name, b"1")
        assert store.list("f") == [name]
        assert store.read_bytes(name) == b"1"
        assert store.info(name).size == 1

    def test_delete_removes_one_file(self, store):
        store.replace("a", b"1")
        store.replace("ab", b"1")
        store.delete("a")
        assert store.list() == ["ab"]

    def test_a_written_file_appears_at_commit(self, store):
        writer = store.writer("sub/w", 6, {}, RUN_ID)
        writer.write(b"123")
        assert store.list("sub") == []
        with pytest.raises(FileNotFoundError):
            store.info("sub/w")
        memory = bytearray(b"456")
        writer.write(memoryview(memory))
        memory[:] = b"xxx"
        writer.commit()
        assert store.read_bytes("sub/w") == b"123456"
        writer.discard()
        assert store.read_bytes("sub/w") == b"123456"
        assert store.leftovers(["sub/w"]) == ()

    def test_a_discarded_file_never_was(self, store):
        writer = store.writer("w", 6, {}, RUN_ID)
        writer.write(b"123")
        writer.discard()
        writer.discard()
        assert store.list() == []
        assert store.leftovers(["w"]) == ()

    def test_a_file_of_the_wrong_length_is_not_published(self, store):
        writer = store.writer("w", 6, {}, RUN_ID)
        writer.write(b"12345")
        with pytest.raises(IntegrityError, match="5 bytes"):
            writer.commit()
        writer.discard()
        assert store.list() == []

    def test_a_writer_replaces_an_older_file_only_at_commit(self, store):
        store.replace("w", b"old")
        writer = store.writer("w", 3, {}, RUN_ID)
        writer.write(b"new")
        assert store.read_bytes("w") == b"old"
        writer.commit()
        assert store.read_bytes("w") == b"new"

    def test_twin_writers_do_not_disturb_each_other(self, store):
        first = store.writer("w", 4, {}, RUN_ID)
        second = store.writer("w", 4, {}, RUN_ID)
        first.write(b"ab")
        second.write(b"abcd")
        second.commit()
        assert store.read_bytes("w") == b"abcd"
        first.write(b"cd")
        first.commit()
        assert store.read_bytes("w") == b"abcd"

    def test_an_empty_file_can_be_written(self, store):
        self.write(store, "w")
        assert store.read_bytes("w") == b""

    def test_attributes_come_back_where_they_are_kept(self, store):
        self.write(store, "w", b"123", attributes={"plan_id": "abc"})
        assert store.attributes("w") == ({"plan_id": "abc"} if self.keeps_attributes else None)

    def test_unfinished_writes_are_left_over_and_can_be_deleted(self, store):
        writer = store.writer("sub/w", 6, {}, RUN_ID)
        writer.write(b"123")
        other = store.writer("sub/other", 3, {}, RUN_ID)
        assert store.leftovers(["sub/w"], older_than_seconds=3600) == ()
        if not self.names_leftovers:
            assert store.leftovers(["sub/w"]) == ()
            return
        (leftover,) = store.leftovers(["sub/w", "sub/absent"])
        assert leftover.name == "sub/w"
        assert leftover.age_seconds < 600
        store.delete_leftover(leftover)
        store.delete_leftover(leftover)
        assert store.leftovers(["sub/w"]) == ()
        writer.write(b"456")
        with pytest.raises(FileNotFoundError):
            writer.commit()
        writer.discard()
        assert store.list("sub") == []
        assert [found.name for found in store.leftovers(["sub/other"])] == ["sub/other"]
        other.discard()

    def test_many_threads_read_their_own_ranges(self, store):
        data = bytes(range(256)) * 400
        store.replace("x", data)
        version = store.info("x").version
        wrong: list[int] = []

        def reader(number: int) -> None:
            for step in range(10):
                offset = (number * 7919 + step * 104729) % (len(data) - 1000)
                if self.read(store, "x", offset, 1000, version) != data[offset : offset + 1000]:
                    wrong.append(offset)

        threads = [threading.Thread(target=reader, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_free_space_is_known_or_unlimited(self, store):
        free = store.free_bytes()
        assert free is None or free > 0
