"""Adapters as PEFT saves them: what each key of their configuration means, and what is refused by name."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anabranch.engine.errors import InputError
from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.models import module_patterns
from anabranch.engine.models.checkpoint import Checkpoint, open_checkpoint, open_source
from anabranch.engine.models.lora import with_adapter
from anabranch.engine.run.meter import Meter
from anabranch.engine.run.reader import HeldArrays, Scratch, SourceReader
from anabranch.engine.storage.opening import open_store

from ...adapters import product, write_adapter
from ...merging import write_checkpoint

GENERATOR = torch.Generator().manual_seed(5)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


BASE = {
    "model.embed.weight": random(11, 6).bfloat16(),
    "model.layers.0.q.weight": random(8, 6).bfloat16(),
    "model.layers.0.q.bias": random(8).bfloat16(),
    "model.layers.1.q.weight": random(8, 6).bfloat16(),
    "model.layers.1.square.weight": random(6, 6).half(),
    "head.weight": random(11, 6).bfloat16(),
}
Q0, Q1, SQUARE = "model.layers.0.q", "model.layers.1.q", "model.layers.1.square"


def factors(module: str, rows: int, columns: int, rank: int = 4) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_A.weight": random(rank, columns), f"{module}.lora_B.weight": random(rows, rank)}


def opened(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Checkpoint:
    write_checkpoint(folder / "base", BASE)
    write_adapter(folder / "adapter", tensors, **config)
    return with_adapter(open_checkpoint(str(folder / "base")), open_store(str(folder / "adapter")))


def values(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor, through the store that a worker opens."""
    store = open_source(checkpoint)
    reader = SourceReader(
        0, checkpoint, store, kernels=CpuKernels(), held=HeldArrays(1 << 20, 1 << 20), scratch=Scratch(), meter=Meter()
    )
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    found = {}
    for name, location in checkpoint.tensors.items():
        raw = np.empty(location.info.nbytes, np.uint8)
        reader.fill(location, 0, location.info.units, raw)
        found[name] = torch.from_numpy(raw).view(kinds[location.info.dtype]).reshape(location.info.shape)
    return found


def check(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    """The base with these tensors changed."""
    found = values(checkpoint)
    assert set(found) == set(BASE)
    for name, tensor in (BASE | expected).items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def changed(name: str, change: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: BASE[name].float() + change}


def test_one_matrix(tmp_path: Path) -> None:
    pair = factors(Q0, 8, 6)
    checkpoint = opened(tmp_path, pair)
    a, b = pair.values()
    check(checkpoint, changed(f"{Q0}.weight", product(a, b, 6 / 4)))
    exact = BASE[f"{Q0}.weight"].double() + 1.5 * (b.double() @ a.double())
    torch.testing.assert_close(values(checkpoint)[f"{Q0}.weight"].double(), exact, rtol=1e-6, atol=1e-6)
    assert checkpoint.url == f"{tmp_path}/base+{tmp_path}/adapter"
    assert "changes 1 matrices and replaces 0 tensors of 6" in checkpoint.notes[0]


def test_adapter_names_inside_tensor_names(tmp_path: Path) -> None:
    a, b = random(4, 6), random(8, 4)
    checkpoint = opened(tmp_path, {f"{Q0}.lora_A.default.weight": a, f"{Q0}.lora_B.default.weight": b})
    check(checkpoint, changed(f"{Q0}.weight", product(a, b, 1.5)))


def test_rank_stabilised(tmp_path: Path) -> None:
    pair = factors(Q0, 8, 6)
    check(
        opened(tmp_path, pair, use_rslora=True),
        changed(f"{Q0}.weight", product(*pair.values(), scale=6 / math.sqrt(4))),
    )


def test_patterns_of_rank_and_alpha(tmp_path: Path) -> None:
    first, second = factors(Q0, 8, 6, rank=2), factors(Q1, 8, 6)
    checkpoint = opened(tmp_path, first | second, rank_pattern={r"layers\.0\.q": 2}, alpha_pattern={"1.q": 10})
    expected = changed(f"{Q0}.weight", product(*first.values(), scale=6 / 2))
    check(checkpoint, expected | changed(f"{Q1}.weight", product(*second.values(), scale=10 / 4)))


def test_the_first_pattern_that_matches_counts_and_names_match_as_a_whole(tmp_path: Path) -> None:
    first, second = factors(Q0, 8, 6), factors(Q1, 8, 6)
    patterns = {"q_pro": 1, "^model.*0[.]q$": 10, "(layers|blocks)\\.\\d+\\.q": 20, Q0: 30}
    checkpoint = opened(tmp_path, first | second, alpha_pattern=patterns)
    expected = changed(f"{Q0}.weight", product(*first.values(), scale=10 / 4))
    check(checkpoint, expected | changed(f"{Q1}.weight", product(*second.values(), scale=20 / 4)))


@pytest.mark.parametrize("pattern", ["([a-z_.0-9]+)+!", "(a|a)*(a|aa)*b", "(.*)*(.*)*(.*)*x", "((((a*)*)*)*)*!"])
def test_a_pattern_that_would_backtrack_takes_no_time(tmp_path: Path, pattern: str) -> None:
    modules = [f"{'a' * 60}.{i}.q" for i in range(20)]
    base = {f"{module}.weight": random(8, 6) for module in modules}
    write_checkpoint(tmp_path / "base", base)
    pairs = [factors(module, 8, 6) for module in modules]
    write_adapter(tmp_path / "adapter", {k: v for pair in pairs for k, v in pair.items()}, alpha_pattern={pattern: 2})
    began = time.process_time()
    with_adapter(open_checkpoint(str(tmp_path / "base")), open_store(str(tmp_path / "adapter")))
    assert time.process_time() - began < 5, "Python's own engine would need longer than the universe has existed"


def test_too_many_patterns_for_the_modules_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_patterns, "MAX_TRIES", 5)
    with pytest.raises(InputError, match="has 3 patterns, too many for the modules"):
        opened(tmp_path, factors(Q0, 8, 6) | factors(Q1, 8, 6), alpha_pattern={"x": 1, "y": 2, "z": 3})


@pytest.mark.parametrize("transposed", [False, True])
def test_a_square_weight_is_turned_as_the_configuration_says(tmp_path: Path, transposed: bool) -> None:
    pair = factors(SQUARE, 6, 6)
    change = product(*pair.values(), scale=1.5)
    checkpoint = opened(tmp_path, pair, fan_in_fan_out=transposed)
    check(checkpoint, changed(f"{SQUARE}.weight", change.T if transposed else change))


def test_a_weight_stored_as_in_times_out(tmp_path: Path) -> None:
    pair = factors(Q0, 6, 8)  # the layer maps 8 features to 6
    checkpoint = opened(tmp_path, pair, fan_in_fan_out=True)
    check(checkpoint, changed(f"{Q0}.weight", product(*pair.values(), scale=1.5).T))


def test_an_embedding(tmp_path: Path) -> None:
    a, b = random(4, 11), random(6, 4)
    tensors = {"model.embed.lora_embedding_A": a, "model.embed.lora_embedding_B": b}
    check(opened(tmp_path, tensors), changed("model.embed.weight", product(a, b, 1.5).T))


def test_whole_tensors_replace_the_base_s(tmp_path: Path) -> None:
    pair = factors("model.embed", 11, 6)
    head, bias, embedding = random(11, 6), random(8).bfloat16(), random(11, 6).half()
    tensors = {
        "head.modules_to_save.default.weight": head,
        f"{Q0}.base_layer.bias": bias,
        "model.embed.base_layer.weight": embedding,
    }
    checkpoint = opened(tmp_path, tensors | pair, bias="all", modules_to_save=["head"])
    expected = {"head.weight": head, f"{Q0}.bias": bias}
    expected["model.embed.weight"] = embedding.float() + product(*pair.values(), scale=1.5)
    check(checkpoint, expected)
    assert "changes 1 matrices and replaces 3 tensors" in checkpoint.notes[0]


def test_what_identifies_the_model(tmp_path: Path) -> None:
    pair = factors(Q0, 8, 6)
    identity = opened(tmp_path, pair).identity()
    assert [file["name"] for file in identity["files"]] == [
        "model.safetensors",
        f"{tmp_path}/adapter/adapter_model.safetensors",
    ]
    assert opened(tmp_path, pair, lora_alpha=7).identity()["reading"] != identity["reading"]
    assert opened(tmp_path, pair).identity()["reading"] == identity["reading"]


# --- what is refused


def refused(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(folder, tensors, **config)
    return f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is LOHA"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "replicated layers"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4"),
        ({"r": 0}, "r is 0"),
        ({"r": 5}, "has rank 4, adapter_config.json says 5"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"rank_pattern": {"q": 2.5}}, "rank_pattern is damaged"),
        ({"alpha_pattern": {"(": 2}}, "unreadable pattern '('"),
        ({"alpha_pattern": {"a)|(b": 2}}, "unreadable pattern"),
        ({"alpha_pattern": {"(?=a)q": 2}}, "unreadable pattern"),
        ({"alpha_pattern": {r"(q)\1": 2}}, "unreadable pattern"),
        ({"alpha_pattern": {"((a{99}){99}){99}": 2}}, "unreadable pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern is damaged"),
        ({"alpha_pattern": {"a" * 301: 2}}, "pattern of 301 characters"),
    ],
)
def test_configurations_that_cannot_be_followed(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, factors(Q0, 8, 6), **config)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "the adapter has no tensors"),
        (factors("model.layers.7.q", 8, 6), "1 tensors match nothing in"),
        (factors("model.layers.7.q", 8, 6), "model.layers.7.q.weight"),
        ({"other.weight": random(3)}, "match nothing in"),
        (factors(Q0, 8, 5), "do not fit the weight [8, 6]"),
        (factors(Q0, 3, 6), "do not fit the weight [8, 6]"),
        ({f"{Q0}.lora_A.weight": random(4, 6)}, "lacks its lora_B"),
        (factors(Q0, 8, 6) | {f"{Q0}.lora_magnitude_vector": random(8)}, "DoRA"),
        (factors(Q0, 8, 6) | {f"{Q0}.lora_A.other.weight": random(4, 6)}, "several adapters in one file"),
        ({n: t.double() for n, t in factors(Q0, 8, 6).items()}, "is F64"),
        ({f"{Q0}.lora_A.weight": random(4, 6, 1, 1), f"{Q0}.lora_B.weight": random(8, 4, 1, 1)}, "Only matrices"),
    ],
)
def test_tensors_that_cannot_be_followed(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    assert said in refused(tmp_path, tensors)


def test_files_that_are_missing_damaged_or_pickled(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", factors(Q0, 8, 6))
    base = open_checkpoint(str(write_checkpoint(tmp_path / "base", BASE)))

    def message() -> str:
        with pytest.raises(InputError) as caught:
            with_adapter(base, open_store(str(folder)))
        return f"{caught.value} {caught.value.hint}"

    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "Pickles can run code" in message()
    (folder / "adapter_model.bin").unlink()
    assert "adapter_model.safetensors is missing" in message()
    (folder / "adapter_config.json").write_text(json.dumps([1]))
    assert "is not a JSON object" in message()
    (folder / "adapter_config.json").unlink()
    assert "no adapter: adapter_config.json is missing" in message()
