"""The licence of a merge is what all inputs say, and nothing that a card hides in it."""

from __future__ import annotations

import pytest

from anabranch.engine.models.licences import MAX_CARD_BYTES, common_licence, licence_of, read_licence
from anabranch.engine.storage.memory import MemoryStore

MIT = {"license": "mit"}


@pytest.mark.parametrize(
    ("front", "found"),
    [
        ("license: mit", MIT),
        ("tags: [a]\nlicense: 'apache-2.0'\nlanguage: en", {"license": "apache-2.0"}),
        (
            "license: other\nlicense_name: qwen-research\nlicense_link: LICENSE",
            {"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"},
        ),
        (
            "license: other\nlicense_link: https://huggingface.co/o/n/blob/main/LICENSE",
            {"license": "other", "license_link": "https://huggingface.co/o/n/blob/main/LICENSE"},
        ),
        ("license: other\nlicense_link: https://minio.corp.internal/LICENSE", {"license": "other"}),
        ("license: other\nlicense_link: s3://bucket/LICENSE", {"license": "other"}),
        ("license: /home/me/LICENSE", {}),
        ("license: no", {"license": "no"}),
        ("license: 2024-01-01", {"license": "2024-01-01"}),
        ("license: [mit, gpl]", {}),
        ("license: !!python/object/apply:os.system [true]", {}),
        ("license_name: x", {}),
        ("- license", {}),
        ("license: [", {}),
        ("a: " + "[" * 20_000, {}),
    ],
)
def test_what_a_front_matter_says(front: str, found: dict[str, str]) -> None:
    for line_end in ("\n", "\r\n"):
        card = f"---\n{front}\n---\n# A model\nlicense: gpl\n".replace("\n", line_end)
        assert read_licence(card.encode()) == found


@pytest.mark.parametrize("card", [b"", b"# A model\nlicense: mit\n", b"---\nlicense: mit\n", b"---\n\xff: x\n---\n"])
def test_cards_without_a_front_matter_say_nothing(card: bytes) -> None:
    assert read_licence(card) == {}


def test_a_folder_without_a_card_or_with_a_huge_one_says_nothing() -> None:
    store = MemoryStore("memory://cards")
    assert licence_of(store) == {}
    store.replace("README.md", b"---\nlicense: mit\n---\n")
    assert licence_of(store) == MIT
    store.replace("README.md", b"---\nlicense: mit\n---\n".ljust(MAX_CARD_BYTES + 1))
    assert licence_of(store) == {}


def test_only_what_all_say_counts() -> None:
    assert common_licence([MIT, MIT]) == MIT
    assert common_licence([MIT, {}]) == common_licence([{}, MIT]) == common_licence([]) == {}
    assert common_licence([MIT, {"license": "gpl"}]) == {}
