"""The whole command on models whose tensors are tied: what is one matrix is merged as one, and config.json says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from ..adapters import product, write_adapter
from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import Command

Tensors = dict[str, torch.Tensor]
EMBEDDING, HEAD, PROJECTION = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"
GEMMA = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
T5 = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def causal(seed: int, *copies: str) -> Tensors:
    embedding = random(seed, 10, 6)
    found = {EMBEDDING: embedding, PROJECTION: random(seed + 50, 6, 6)}
    return found | {name: embedding.clone() for name in copies}


class Place:
    def __init__(self, folder: Path, anabranch: Command) -> None:
        self.folder, self._anabranch = folder, anabranch

    def run(self, base: Tensors, tuned: Tensors, config: dict[str, Any], **keys: Any) -> Result:
        write_checkpoint(self.folder / "base", base, 1, config)
        write_checkpoint(self.folder / "m", tuned, 1, config)
        models = [{"model": str(self.folder / "m")}]
        content = {"merge_method": "task_arithmetic", "base_model": str(self.folder / "base"), "models": models} | keys
        content = {key: value for key, value in content.items() if value is not None}
        return self._anabranch("merge", write_recipe(self.folder / "r.yml", content), self.folder / "out")

    def merged(self, base: Tensors, tuned: Tensors, config: dict[str, Any], **keys: Any) -> Tensors:
        result = self.run(base, tuned, config, **keys)
        assert result.exit_code == 0, result.output
        self.said = " ".join(result.output.split())
        return load_output(self.folder / "out")

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "out" / "config.json").read_text())
        return found


@pytest.fixture
def place(tmp_path: Path, anabranch: Command) -> Place:
    return Place(tmp_path, anabranch)


def check(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


def test_a_second_copy_of_a_model_that_is_tied_by_default(place: Place) -> None:
    check(place.merged(causal(1), causal(2, HEAD), GEMMA), causal(2))
    assert place.config == GEMMA


def test_a_base_with_a_second_copy_that_is_tied_by_default(place: Place) -> None:
    check(place.merged(causal(1, HEAD), causal(2), GEMMA), causal(2, HEAD))
    assert place.config == GEMMA  # they are still equal


def test_a_head_that_differs_although_it_is_said_to_be_tied(place: Place) -> None:
    """Both ways out: without the head, or with a base that has one of its own."""
    tuned = causal(2) | {HEAD: random(3, 10, 6)}
    result = place.run(causal(1), tuned, GEMMA)
    assert result.exit_code == 3
    said = " ".join(result.stderr.split())
    assert f"{HEAD} is tied to {EMBEDDING}" in said
    assert "extra_tensors: ignore" in said
    assert "output: {ties: apart}" in said
    check(place.merged(causal(1), tuned, GEMMA, extra_tensors="ignore"), causal(2))
    for again, base, keys in (("apart", causal(1), {"output": {"ties": "apart"}}), ("again", causal(1, HEAD), {})):
        place.folder /= again
        check(place.merged(base, tuned, GEMMA, **keys), tuned)
        assert place.config == GEMMA | {"tie_word_embeddings": False}
        assert f"{HEAD} differs from {EMBEDDING}, to which it is said to be tied" in place.said


@pytest.mark.parametrize("stored", [("shared.weight",), COPIES[1:2], ("shared.weight", *COPIES), COPIES[:2]])
@pytest.mark.parametrize("wanted", [("shared.weight",), COPIES[:2], ("shared.weight", *COPIES)])
def test_whichever_copies_of_t5_a_file_stores(place: Place, stored: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    base, tuned = (
        {copy: random(seed, 10, 6) for copy in names} | {name: random(seed + 50, 6, 6)}
        for seed, names in ((1, wanted), (2, stored))
    )
    found = place.merged(base, tuned, T5)
    check(found, {copy: random(2, 10, 6) for copy in wanted} | {name: tuned[name]})
    assert place.config == T5


def adapted(place: Place, tensors: Tensors, **keys: Any) -> Result:
    write_checkpoint(place.folder / "base", causal(1), 1, LLAMA)
    write_adapter(place.folder / "adapter", tensors)
    models = [{"model": f"{place.folder}/base+{place.folder}/adapter"}]
    keys = {"merge_method": "passthrough", "models": models, "base_model": None} | keys
    return place.run(causal(1), causal(1), LLAMA, **keys)


def factors(module: str, rows: int) -> Tensors:
    return {f"{module}.lora_A.weight": random(7, 4, 6), f"{module}.lora_B.weight": random(8, rows, 4)}


def test_an_adapter_on_a_tied_head_makes_it_a_tensor_of_its_own(place: Place) -> None:
    pair = factors("lm_head", 10)
    result = adapted(place, pair)
    assert result.exit_code == 0, result.output
    base = causal(1)
    check(load_output(place.folder / "out"), base | {HEAD: base[EMBEDDING] + product(*pair.values(), 6 / 4)})
    assert place.config == LLAMA | {"tie_word_embeddings": False}
    assert "the adapter makes it a tensor of its own" in " ".join(result.output.split())


def test_an_adapter_that_trains_embedding_and_head_apart(place: Place) -> None:
    whole = {EMBEDDING: random(4, 10, 6), HEAD: random(5, 10, 6)}
    result = adapted(place, whole)
    assert result.exit_code == 0, result.output
    check(load_output(place.folder / "out"), causal(1) | whole)
    assert place.config["tie_word_embeddings"] is False


def test_an_adapter_on_a_tied_head_beside_its_base_is_refused_with_both_ways_out(place: Place) -> None:
    keys: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": str(place.folder / "base")}
    result = adapted(place, factors("lm_head", 10), **keys)
    assert result.exit_code == 3
    assert f"{HEAD} is tied to {EMBEDDING}" in " ".join(result.stderr.split())
    keys |= {"extra_tensors": "ignore", "allow_unchanged": True}  # all that it changes is left out
    assert adapted(place, factors("lm_head", 10), **keys).exit_code == 0
    assert place.config == LLAMA
    assert HEAD not in load_output(place.folder / "out")


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_ties_apart_where_one_model_is_tied_and_another_is_not(place: Place, prefix: str) -> None:
    """The tied one changes the head with its embedding, as when its state dict is merged."""
    pair = factors("lm_head", 10)
    own = causal(2) | {HEAD: random(3, 10, 6)}
    write_checkpoint(place.folder / "untied", {prefix + name: tensor for name, tensor in own.items()}, 1)
    models = [f"{place.folder}/base+{place.folder}/adapter", str(place.folder / "m"), str(place.folder / "untied")]
    entries = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    write_checkpoint(place.folder / "base", causal(1), 1, LLAMA)
    write_adapter(place.folder / "adapter", pair)
    found = place.merged(causal(1), causal(6), LLAMA, models=entries, output={"ties": "apart"})
    base, tied = causal(1, HEAD), causal(6, HEAD)
    expected = {name: t + 0.5 * (tied[name] - t) + 0.5 * (own[name] - t) for name, t in base.items()}
    expected[HEAD] += 0.5 * product(*pair.values(), 6 / 4)
    check(found, expected)
    assert place.config == LLAMA | {"tie_word_embeddings": False}


def test_ties_apart_without_a_head_of_its_own_is_refused(place: Place) -> None:
    result = place.run(causal(1), causal(2, HEAD), GEMMA, output={"ties": "apart"})
    assert result.exit_code == 2
    assert "no model has a tensor of its own that is tied in the base" in " ".join(result.stderr.split())
