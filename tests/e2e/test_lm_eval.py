"""lm-evaluation-harness itself, where it is installed: a search by a task whose questions lie in a local file."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import yaml

from ..merging import write_recipe
from .conftest import Command

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness (lm_eval) is not installed"
)
WORDS = ["what", "follows", "one", "two", "three", "four", "five", "?"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama of a few thousand weights with a tokenizer, two that differ from it, and five questions."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    for seed, name in enumerate(("base", "m0", "m1")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        wrapped.save_pretrained(tmp_path / name)
    numbers = WORDS[2:7]
    rows = [
        {"question": f"what follows {a} ?", "choices": numbers, "answer": numbers.index(b)}
        for a, b in pairwise(numbers)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "next_number",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "next_number.yaml").write_text(yaml.safe_dump(task))
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.slow
def test_the_harness_scores_every_trial(anabranch: Command, folder: Path) -> None:
    weight = {"weight": {"search": {"choice": [0.0, 1.0]}}}
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "m0", "parameters": weight}, {"model": "m1"}],
    }
    write_recipe(folder / "recipe.yml", recipe)
    arguments = f"--include_path {folder / 'tasks'} --device cpu --batch_size 4"
    evaluate = ["--evaluate", "lm-eval:next_number", "--evaluate-args", arguments]
    found = anabranch("search", folder / "recipe.yml", folder / "out", *evaluate, "--sampler", "grid")
    assert found.exit_code == 0, found.output
    rows = pyarrow.parquet.read_table(folder / "out/trials.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["finished", "finished"], found.output
    assert all(row["score.next_number"] * 4 in range(5) for row in rows)
