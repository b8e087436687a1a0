"""The model card: what the Hub reads, a recipe that says the same, and no place of anybody's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from anabranch.engine.methods import METHODS
from anabranch.engine.models import ModelUrl, public_id
from anabranch.engine.plan.model_card import MERGEKITS, card_files, is_mergekits
from anabranch.engine.recipe import Recipe, activations_of, canonical, groups_of, load_recipe, published, references_of
from anabranch.engine.recipe.parse import parse_recipe

from ...corpus import test_corpus
from ...corpus.files import FILES

ROOT = Path(__file__).resolve().parents[3]
PLAIN = [path for path in sorted((ROOT / "configs").glob("*.yml")) if not path.stem.startswith("search_")]
RECIPES = [*PLAIN, *(f.path for f in FILES if not f.refused_with)]


def references(recipe: Recipe) -> list[str]:
    keys = recipe.tokenizer_keys
    return [*dict.fromkeys([*references_of(recipe), *(keys.references() if keys is not None else ())])]


def made(recipe: Recipe, urls: dict[str, ModelUrl], licence: dict[str, str] | None = None, **config: str) -> list[str]:
    files = sorted({a for g in groups_of(recipe) for e in g.entries if (a := activations_of(recipe, e))})
    opened = {part: f"{part}@0123abc" for url in urls.values() for part in url if part is not None}
    found = card_files(recipe, urls, files, opened, licence or {}, config)
    assert list(found) == ["README.md", "mergekit_config.yml"]
    return [data.decode() for data in found.values()]


def front(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def of_hub(*names: str, **keys: Any) -> tuple[Recipe, dict[str, ModelUrl]]:
    base, *models = names
    content = {"merge_method": "task_arithmetic", "base_model": base, "models": [{"model": m} for m in models], **keys}
    recipe = parse_recipe(yaml.safe_dump(content), "r")
    return recipe, {name: ModelUrl(f"hf://{name}") for name in references(recipe)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_told_without_a_place_and_means_the_same(path: Path) -> None:
    recipe = load_recipe(path)
    urls = {r: ModelUrl(*(f"s3://secret/{part}" for part in r.split("+"))) for r in references(recipe)}
    card, text = made(recipe, urls)
    assert "secret" not in card + text and "://" not in text
    assert f"yaml\n{text}" in card
    names = {r: r for r in references(recipe)}
    names |= {a: a for g in groups_of(recipe) for e in g.entries if (a := activations_of(recipe, e))}
    shown = published(recipe, names)
    assert canonical(parse_recipe(yaml.safe_dump(shown), "r")) == canonical(recipe)
    assert published(parse_recipe(text, "r"), {r: r for r in _all_names(text)}) == yaml.safe_load(text)


def _all_names(text: str) -> set[str]:
    return set(re.findall(r"(?:base|(?:model|adapter|activations)-\d+)(?:\+adapter-\d+)?", text)) | set(
        re.findall(r"(?:model|base_model|source|activations): ['\"]?([^,}'\"\n]+)", text)
    )


def test_the_front_matter() -> None:
    recipe, urls = of_hub("o/base", "o/math", "p/code@v1", "o/math")
    card, text = made(recipe, urls, {"license": "mit"}, model_type="llama")
    assert front(card) == {
        "base_model": ["o/base", "o/math", "p/code"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "anabranch", "mergekit"],
        "license": "mit",
    }
    assert "- [o/base](https://huggingface.co/o/base) at `0123abc`, the base" in card
    assert "[arXiv 2212.04089](https://arxiv.org/abs/2212.04089)" in card
    assert yaml.safe_load(text)["models"][1] == {"model": "p/code@v1"}


def test_models_without_a_public_name_have_neutral_ones() -> None:
    recipe, urls = of_hub("o/base", "/home/me/math", "o/code")
    urls["/home/me/math"] = ModelUrl("/home/me/math", "/home/me/adapter")
    card, text = made(recipe, urls)
    assert front(card)["base_model"] == ["o/base", "o/code"]
    assert yaml.safe_load(text)["models"] == [{"model": "model-1+adapter-1"}, {"model": "o/code"}]
    assert "- `model-1` with `adapter-1`" in card and "home" not in card
    card, _ = made(recipe, {name: ModelUrl(f"gs://b/{name}") for name in urls})
    assert front(card) == {"tags": ["merge", "anabranch", "mergekit"]}


def test_nothing_in_a_recipe_ends_its_block() -> None:
    recipe, urls = of_hub("o/base", "o/m", chat_template="{{ a }}\n````\n# Free\n")
    card, text = made(recipe, urls)
    assert f"`````yaml\n{text}`````\n" in card


@pytest.mark.parametrize(
    ("keys", "theirs"),
    [
        ({}, True),
        ({"parameters": {"weight": [0.1, 0.2], "normalize": True}}, True),
        ({"parameters": {"normalize": False}, "seed": 0, "output": {"shard_size": "2GB"}}, True),
        ({"seed": 3}, False),
        ({"exclude": ["x"]}, False),
        ({"output": {"shard_size": "1GB"}}, False),
        ({"merge_method": "magnitude", "parameters": {"density": 0.5}}, False),
        ({"merge_method": "ties", "parameters": {"density": 0.5}}, True),
        ({"merge_method": "ties", "parameters": {"density": {"tadrop": {"mean": 0.5}}}}, False),
        ({"merge_method": "ties", "parameters": {"density": 0.5, "scope": "model"}}, False),
        ({"tokenizer": {"source": "union"}}, True),
        ({"tokenizer": {"source": "union", "embeddings": ["e"]}}, False),
    ],
)
def test_what_counts_as_a_recipe_of_mergekits(keys: dict[str, Any], theirs: bool) -> None:
    recipe, urls = of_hub("o/base", "o/m", **keys)
    assert is_mergekits(published(recipe, {name: name for name in urls})) is theirs


def test_the_methods_of_mergekit_are_those_of_the_corpus() -> None:
    assert set(MERGEKITS) == test_corpus.MERGEKITS


def test_a_card_names_the_papers_that_the_documents_name() -> None:
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## )", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE | re.DOTALL)
    )
    for name, method in METHODS.items():
        source = sections[name].split("**Source.**")[1].split("\n\n")[0]
        cited = set(re.findall(r"arxiv.org/abs/(\d{4}\.\d{5})", source))
        assert set(re.findall(r"arXiv (\d{4}\.\d{5})", method.function.__doc__ or "")) == cited, name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("hf://o/n", "o/n"),
        ("hf://o/n@refs/pr/1", "o/n"),
        ("hf://datasets/o/n", None),
        ("s3://o/n", None),
        ("/o/n", None),
        ("hf://o/n+x", None),
    ],
)
def test_public_names(url: str, name: str | None) -> None:
    assert public_id(url) == name
