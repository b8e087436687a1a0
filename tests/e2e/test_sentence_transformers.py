"""Embedding models as sentence-transformers saves them: merged, checked by loading, and used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.engine.output.loading import check_loading

from ..merging import merge, write_recipe

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rivers", "join", "and", "part"]
SENTENCES = ["rivers join", "rivers part and join"]


def embedder(folder: Path, seed: int) -> Any:
    """A tiny BERT, a pooling module, a dense one with weights of its own, and one that normalises; not saved yet."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    plain = folder / f"plain{seed}"
    transformers.BertModel(config).save_pretrained(plain)
    (plain / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(plain / "vocab.txt")).save_pretrained(plain)
    torch.manual_seed(9)  # the dense module is the same in all
    parts = [modules.Transformer(str(plain)), modules.Pooling(16), modules.Dense(16, 8), modules.Normalize()]
    return SentenceTransformer(modules=parts, device="cpu")


def test_a_merge_embeds_as_the_mean_of_its_models(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    models = [embedder(tmp_path, seed) for seed in (1, 2)]
    for i, model in enumerate(models):
        model.save(str(tmp_path / f"m{i}"))
    entries = [{"model": str(tmp_path / f"m{i}")} for i in range(2)]
    merge(write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": entries}), tmp_path / "out")

    found = check_loading(str(tmp_path / "out"))
    assert found.problems == ()
    assert found.modules == "modules.json: sentence-transformers loads Transformer, Pooling, Dense, Normalize"

    expected, other = (dict(model.named_parameters()) for model in models)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.add_(other[name]).div_(2)
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    torch.testing.assert_close(
        loaded.encode(SENTENCES, convert_to_tensor=True), models[0].encode(SENTENCES, convert_to_tensor=True)
    )

    (tmp_path / "out" / "2_Dense" / "model.safetensors").unlink()
    assert [problem.file for problem in check_loading(str(tmp_path / "out")).problems] == ["modules.json"]
