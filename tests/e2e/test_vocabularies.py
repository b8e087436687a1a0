"""Models with different vocabularies merged by the command, beside the plain computation and the libraries."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer

from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.recipe.parse import load_recipe

from ..adapters import product, write_adapter
from ..merging import load_output, write_recipe
from .conftest import Command
from .vocabularies import OTHER_TEXTS, TEXTS, bpe, permuted, unigram, with_added, wordpiece, write_model

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
START, END = AddedToken("<|start|>", special=True, normalized=False), AddedToken("<|end|>", special=True)
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base; chat, which added tokens and rows; other, with a vocabulary of its own; plain, without a tokenizer."""
    folder = tmp_path_factory.mktemp("vocabularies")
    base = bpe(TEXTS, 90)
    chat = with_added(base, START, AddedToken("again", lstrip=True), END)
    other = with_added(bpe(OTHER_TEXTS, 80, ["<s>", "<unk>", "</s>"]), END)
    write_model(folder / "base", base, base.get_vocab_size() + 13, 1)  # more rows than tokens
    write_model(folder / "chat", chat, chat.get_vocab_size(), 2)
    write_model(folder / "other", other, other.get_vocab_size() + 2, 3)
    write_model(folder / "plain", None, base.get_vocab_size(), 4)
    for name, template in {"base": None, "chat": CHAT, "other": CHAT + "\n"}.items():
        if template:
            (folder / name / "chat_template.jinja").write_text(template)
    return folder


def recipe(models: Path, *names: str, **keys: Any) -> dict[str, Any]:
    entries = [{"model": str(models / name), "parameters": {"weight": 0.5}} for name in names]
    common = {"merge_method": "task_arithmetic", "base_model": str(models / "base"), "models": entries}
    return common | {"dtype": "float32", "output": {"shard_size": "8KB"}} | keys


def merged(anabranch: Command, folder: Path, recipe: dict[str, Any], *options: object) -> Path:
    write_recipe(folder / "r.yml", recipe)
    done = anabranch("merge", folder / "r.yml", folder / "out", *options)
    assert done.exit_code == 0, done.stderr
    return folder / "out"


def vocabulary(folder: Path) -> dict[str, int]:
    return dict(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab())


def tensor(folder: Path, name: str) -> torch.Tensor:
    return load_output(folder)[name]


def expected(models: Path, out: Path, name: str, names: list[str], multiple: int = 1) -> torch.Tensor:
    """base + 0.5 of each difference, on permuted matrices."""
    order = [*names, "base"]
    inputs = [
        (vocabulary(models / (n if (models / n / "tokenizer.json").exists() else "base")), tensor(models / n, name))
        for n in order
    ]
    *tuned, base = permuted(inputs, vocabulary(out), len(names), multiple)
    total = torch.zeros_like(base)
    for matrix in tuned:
        total = total + (matrix - base) * 0.5
    return base + total


def check(models: Path, out: Path, names: list[str], multiple: int = 1) -> None:
    tensors = load_output(out)
    for name in EMBEDDINGS:
        torch.testing.assert_close(tensors[name], expected(models, out, name, names, multiple), rtol=0, atol=0)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(tensors[EMBEDDINGS[0]])


def same_ids(one: Path, two: Path, text: str) -> bool:
    from transformers import AutoTokenizer

    first, second = (AutoTokenizer.from_pretrained(folder) for folder in (one, two))
    return bool(first(text)["input_ids"] == second(text)["input_ids"])


def test_the_base_s_tokens(anabranch: Command, models: Path, tmp_path: Path) -> None:
    out = merged(anabranch, tmp_path, recipe(models, "chat", "other", tokenizer_source="base"))
    check(models, out, ["chat", "other"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (models / "base" / name).read_bytes()
    assert len(tensor(out, EMBEDDINGS[0])) == len(vocabulary(models / "base"))
    assert anabranch("verify", out, "--load").exit_code == 0


def test_the_union_of_all_tokens(anabranch: Command, models: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    out = merged(anabranch, tmp_path, recipe(models, "chat", "other", tokenizer_source="union"))
    check(models, out, ["chat", "other"])
    whole = vocabulary(out)
    assert set(whole) == {token for name in ("base", "chat", "other") for token in vocabulary(models / name)}
    assert whole.items() >= vocabulary(models / "base").items()
    assert sorted(whole.values()) == list(range(len(whole)))
    assert anabranch("verify", out, "--load").exit_code == 0
    loaded = AutoTokenizer.from_pretrained(out)
    assert len(loaded) == len(whole)
    assert whole["<|start|>"] in loaded("<|start|>the")["input_ids"]
    assert loaded.decode(loaded("a hat")["input_ids"]) == "a hat"


def test_a_union_with_added_tokens_only_encodes_as_the_model_that_added_them(
    anabranch: Command, models: Path, tmp_path: Path
) -> None:
    out = merged(anabranch, tmp_path, recipe(models, "chat", tokenizer_source="union"))
    check(models, out, ["chat"])
    assert vocabulary(out) == vocabulary(models / "chat")
    for text in (*TEXTS, "<|start|>the cat<|end|>", "join them again"):
        assert same_ids(out, models / "chat", text)
    decoders = [
        json.loads((f / "tokenizer_config.json").read_text())["added_tokens_decoder"] for f in (out, models / "chat")
    ]
    assert decoders[0] == decoders[1]


def test_another_model_s_tokens(anabranch: Command, models: Path, tmp_path: Path) -> None:
    out = merged(anabranch, tmp_path, recipe(models, "chat", "other", tokenizer_source=str(models / "other")))
    check(models, out, ["chat", "other"])
    assert vocabulary(out) == vocabulary(models / "other")
    assert same_ids(out, models / "other", "des modèles et <|end|>")
    config = json.loads((out / "config.json").read_text())
    assert config["bos_token_id"] == vocabulary(out)["<s>"] == 0  # 1 in the base
    assert config["eos_token_id"] == vocabulary(out)["</s>"]
    assert anabranch("verify", out, "--load").exit_code == 0


def test_padding_and_rows_of_single_tokens(anabranch: Command, models: Path, tmp_path: Path) -> None:
    tokens = {
        "<|start|>": {"source": {"kind": "model_token", "model": str(models / "base"), "token": "<s>"}},
        "<|end|>": {"source": str(models / "other"), "force": True},
        "<|new|>": {"source": {"kind": "zero"}},
        "<|third|>": {"source": {"kind": "model_token", "model": str(models / "chat"), "token_id": 3}},
    }
    keys = {"source": "union", "pad_to_multiple_of": 64, "tokens": tokens}
    out = merged(anabranch, tmp_path, recipe(models, "chat", "other", tokenizer=keys))
    whole, name = vocabulary(out), EMBEDDINGS[0]
    rows, plain = tensor(out, name), expected(models, out, name, ["chat", "other"], 64)
    named = [whole[token] for token in tokens]
    others = [row for row in range(len(whole)) if row not in named]
    assert len(rows) % 64 == 0
    torch.testing.assert_close(rows[others], plain[others], rtol=0, atol=0)
    start, base = tensor(models / "base", name)[vocabulary(models / "base")["<s>"]].float(), vocabulary(models / "chat")
    chat = tensor(models / "chat", name)[base["<|start|>"]].float()
    torch.testing.assert_close(rows[whole["<|start|>"]], start + (0.0 + (chat - start) * 0.5), rtol=0, atol=0)
    end = tensor(models / "other", name)[vocabulary(models / "other")["<|end|>"]].float()
    torch.testing.assert_close(rows[whole["<|end|>"]], end, rtol=0, atol=0)
    assert not rows[whole["<|new|>"]].any()
    torch.testing.assert_close(rows[whole["<|third|>"]], tensor(models / "chat", name)[3].float(), rtol=0, atol=0)
    # Padding is the mean of each model's rows, merged; with a method that is linear, the mean of the merged rows.
    mean = rows[: len(whole)].double().mean(dim=0).float()
    torch.testing.assert_close(rows[len(whole) :], mean.expand(len(rows) - len(whole), -1), rtol=1e-5, atol=1e-6)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(rows)
    assert anabranch("verify", out, "--load").exit_code == 0


def test_a_model_without_a_tokenizer_has_the_base_s(anabranch: Command, models: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path / "r.yml", recipe(models, "plain", "chat", tokenizer_source="union"))
    planned = anabranch("plan", tmp_path / "r.yml", tmp_path / "out")
    assert f"{models / 'plain'} has no tokenizer; its tokens count as those of {models / 'base'}" in planned.output
    out = merged(anabranch, tmp_path, recipe(models, "plain", "chat", tokenizer_source="union"))
    check(models, out, ["plain", "chat"])


def test_excluded_embeddings_are_copied_in_the_output_s_order(anabranch: Command, models: Path, tmp_path: Path) -> None:
    keys = recipe(models, "chat", tokenizer_source="union", exclude=["*embed*"], dtype="bfloat16")
    out = merged(anabranch, tmp_path, keys)
    order = [(vocabulary(models / n), tensor(models / n, EMBEDDINGS[0])) for n in ("chat", "base")]
    base = permuted(order, vocabulary(out), 1)[1]
    torch.testing.assert_close(tensor(out, EMBEDDINGS[0]), base.bfloat16(), rtol=0, atol=0)


def test_without_a_base_missing_rows_are_means(anabranch: Command, models: Path, tmp_path: Path) -> None:
    entries = [
        {"model": str(models / n), "parameters": {"weight": w}} for n, w in [("base", 1), ("chat", 2), ("other", 1)]
    ]
    keys = {"merge_method": "linear", "models": entries, "dtype": "float32", "tokenizer_source": "union"}
    out = merged(anabranch, tmp_path, keys)
    names = ("base", "chat", "other")
    for name in EMBEDDINGS:
        inputs = [(vocabulary(models / n), tensor(models / n, name)) for n in names]
        one, two, three = permuted(inputs, vocabulary(out), None)
        torch.testing.assert_close(tensor(out, name), (((0 + one * 1) + two * 2) + three * 1) / 4, rtol=0, atol=0)


def test_slices_of_models_with_different_tokens(anabranch: Command, models: Path, tmp_path: Path) -> None:
    slices = [{"sources": [{"model": str(models / name), "layer_range": [0, 1]}]} for name in ("base", "other")]
    keys = {"merge_method": "passthrough", "slices": slices, "dtype": "float32", "tokenizer_source": "union"}
    out = merged(anabranch, tmp_path, keys)
    for name, number in zip(EMBEDDINGS, (0, 1), strict=True):  # the first slice has the input, the last the head
        inputs = [(vocabulary(models / n), tensor(models / n, name)) for n in ("base", "other")]
        wanted = permuted(inputs, vocabulary(out), None)[number]
        torch.testing.assert_close(tensor(out, name), wanted, rtol=0, atol=0)
    config = json.loads((out / "config.json").read_text())
    assert (config["num_hidden_layers"], config["vocab_size"]) == (2, len(vocabulary(out)))
    assert anabranch("verify", out, "--load").exit_code == 0


def test_an_adapter_with_more_tokens_than_its_base(anabranch: Command, models: Path, tmp_path: Path) -> None:
    stored = {name: tensor(models / "chat", name) for name in EMBEDDINGS}
    folder = write_adapter(tmp_path / "adapter", stored)
    shutil.copy(models / "chat" / "tokenizer.json", folder)
    base = str(models / "base")
    entries = [{"model": f"{base}+{folder}", "parameters": {"weight": 0.5}}]
    keys = {"merge_method": "task_arithmetic", "base_model": base, "models": entries, "dtype": "float32"}
    out = merged(anabranch, tmp_path, keys | {"tokenizer_source": "union"})
    check(models, out, ["chat"])
    assert vocabulary(out) == vocabulary(models / "chat")


def test_rows_that_an_adapter_computes(anabranch: Command, models: Path, tmp_path: Path) -> None:
    name, generator = EMBEDDINGS[0], torch.Generator().manual_seed(5)
    rows = tensor(models / "chat", name)
    a, b = torch.randn(4, len(rows), generator=generator), torch.randn(rows.shape[1], 4, generator=generator)
    module = name.removesuffix(".weight")
    folder = write_adapter(tmp_path / "adapter", {f"{module}.lora_embedding_A": a, f"{module}.lora_embedding_B": b})
    entries = [{"model": f"{models}/chat+{folder}", "parameters": {"weight": 0.5}}]
    common = {"merge_method": "task_arithmetic", "models": entries, "dtype": "float32"}
    out = merged(anabranch, tmp_path, common | {"base_model": str(models / "base"), "tokenizer_source": "union"})
    changed = rows.float() + product(b.T, a.T, 6 / 4)
    inputs = [(vocabulary(models / "chat"), changed), (vocabulary(models / "base"), tensor(models / "base", name))]
    tuned, base = permuted(inputs, vocabulary(out), 1)
    torch.testing.assert_close(tensor(out, name), base + (0 + (tuned - base) * 0.5), rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "make"), [("Unigram", unigram), ("WordPiece", wordpiece)])
def test_other_kinds_of_tokenizer(anabranch: Command, tmp_path: Path, kind: str, make: Any) -> None:
    base, other = make(TEXTS, 60), with_added(make([*OTHER_TEXTS, *TEXTS], 70), START)
    write_model(tmp_path / "base", base, base.get_vocab_size(), 1)
    write_model(tmp_path / "other", other, other.get_vocab_size() + 5, 2)
    out = merged(anabranch, tmp_path, recipe(tmp_path, "other", tokenizer_source="union"))
    check(tmp_path, out, ["other"])
    assert json.loads((out / "tokenizer.json").read_text())["model"]["type"] == kind
    assert len(vocabulary(out)) > len(vocabulary(tmp_path / "base"))


def test_a_tied_embedding(anabranch: Command, tmp_path: Path) -> None:
    base = bpe(TEXTS, 80)
    write_model(tmp_path / "base", base, base.get_vocab_size() + 9, 1, tied=True)
    chat = with_added(base, START)
    write_model(tmp_path / "chat", chat, chat.get_vocab_size(), 2, tied=True)
    out = merged(anabranch, tmp_path, recipe(tmp_path, "chat", tokenizer_source="union"))
    assert "lm_head.weight" not in load_output(out)
    torch.testing.assert_close(
        tensor(out, EMBEDDINGS[0]), expected(tmp_path, out, EMBEDDINGS[0], ["chat"]), rtol=0, atol=0
    )
    loaded = anabranch("verify", out, "--load")
    assert loaded.exit_code == 0, loaded.output


def test_tokens_without_a_row_leave_the_tokenizer(anabranch: Command, models: Path, tmp_path: Path) -> None:
    for name in ("chat", "base"):
        shutil.copytree(models / name, tmp_path / name)
    chat = Tokenizer.from_file(str(models / "chat" / "tokenizer.json"))
    chat.save(str(tmp_path / "base" / "tokenizer.json"))
    base = vocabulary(models / "base")
    file = next((tmp_path / "base").glob("model-00001*"))
    rows = load_file(file)[EMBEDDINGS[0]]
    write_model(tmp_path / "base", chat, len(base), 9)
    assert len(rows) > len(base)
    out = merged(anabranch, tmp_path, recipe(tmp_path, "chat", tokenizer_source="base"))
    assert vocabulary(out) == base
    assert len(tensor(out, EMBEDDINGS[0])) == len(base)
    decoder = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {entry["content"] for entry in decoder.values()} == {"<unk>", "<s>", "</s>"}


def test_the_same_bytes_with_any_memory_and_threads(anabranch: Command, models: Path, tmp_path: Path) -> None:
    keys = {"source": "union", "pad_to_multiple_of": 32}
    outputs = []
    for i, options in enumerate([("--workers", 1, "--memory", "512MiB"), ("--workers", 3)]):
        folder = tmp_path / str(i)
        out = merged(anabranch, folder, recipe(models, "chat", "other", tokenizer=keys), *options)
        names = sorted(path for path in out.rglob("*") if path.is_file() and path.suffix != ".parquet")
        outputs.append({str(path.relative_to(out)): path.read_bytes() for path in names})
    assert outputs[0] == outputs[1]


def test_two_recipes_in_one_reading_write_what_each_writes_alone(
    anabranch: Command, models: Path, tmp_path: Path
) -> None:
    names = {"a": {"source": "union", "pad_to_multiple_of": 32}, "b": {"source": "union"}, "c": {"source": "base"}}
    paths = []
    for name, keys in names.items():
        weights = {"a": 0.5, "b": 0.25, "c": 1.0}
        made = recipe(models, "chat", "other", tokenizer=keys)
        for entry in made["models"]:
            entry["parameters"] = {"weight": weights[name]}
        paths.append(write_recipe(tmp_path / f"{name}.yml", made))
        assert anabranch("merge", paths[-1], tmp_path / "alone" / name).exit_code == 0
    done = anabranch("merge", *paths, tmp_path / "together")
    assert done.exit_code == 0, done.stderr
    for file in sorted((tmp_path / "alone").rglob("*")):
        if file.is_file() and file.suffix != ".parquet":
            assert (tmp_path / "together" / file.relative_to(tmp_path / "alone")).read_bytes() == file.read_bytes()


def test_a_plan_reaches_other_machines_whole(models: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yml", recipe(models, "chat", "other", tokenizer_source="union"))
    plan = open_inputs(load_recipe(path), tmp_path).plan
    copy = pickle.loads(pickle.dumps(plan))
    assert copy.tasks == plan.tasks
    assert hash(copy.tasks[0].sources) == hash(plan.tasks[0].sources)


def test_the_vocabulary_is_part_of_the_plan(anabranch: Command, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    path = write_recipe(tmp_path / "r.yml", recipe(tmp_path / "models", "chat", tokenizer_source="union"))
    first = json.loads(anabranch("plan", path, tmp_path / "out", "--json").stdout)["plan_id"]
    file = tmp_path / "models" / "chat" / "tokenizer.json"
    file.write_text(file.read_text().replace("<|start|>", "<|begin|>"))
    assert json.loads(anabranch("plan", path, tmp_path / "out", "--json").stdout)["plan_id"] != first


# --- chat templates


def template(out: Path) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(out).chat_template)


def test_the_most_common_chat_template(anabranch: Command, models: Path, tmp_path: Path) -> None:
    out = merged(anabranch, tmp_path, recipe(models, "chat", "other", chat_template="auto", vocab="intersect"))
    assert template(out) == CHAT.strip()
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == CHAT.strip()


def test_a_chat_template_by_name_and_as_text(anabranch: Command, models: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    keys = recipe(models, "chat", chat_template="chatml", tokenizer_source="union")
    tokenizer = AutoTokenizer.from_pretrained(merged(anabranch, tmp_path / "a", keys))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    out = merged(anabranch, tmp_path / "b", recipe(models, "chat", chat_template=CHAT, tokenizer_source="base"))
    assert template(out) == CHAT


# --- what is refused


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("slow", 3, "only files of a slow tokenizer (tokenizer.model)"),
        ("none", 3, "no tokenizer.json; tokens cannot be matched without it"),
        ("damaged", 3, "tokenizer.json is no tokenizer"),
        ("config", 3, "tokenizer_config.json is not a JSON object"),
        ("columns", 3, "model.embed_tokens.weight has shape"),
    ],
)
def test_what_cannot_be_matched(
    anabranch: Command, models: Path, tmp_path: Path, change: str, code: int, message: str
) -> None:
    shutil.copytree(models, tmp_path / "models")
    base = tmp_path / "models" / "base"
    if change == "damaged":
        (base / "tokenizer.json").write_text("[]")
    elif change == "config":
        (base / "tokenizer_config.json").write_text("[]")
    elif change == "columns":
        write_columns(tmp_path / "models" / "chat")
    else:
        (base / "tokenizer.json").unlink()
        (base / "tokenizer_config.json").unlink()
        if change == "slow":
            (base / "tokenizer.model").write_bytes(b"\x00")
    path = write_recipe(tmp_path / "r.yml", recipe(tmp_path / "models", "chat", tokenizer_source="union"))
    done = anabranch("merge", path, tmp_path / "out")
    assert (done.exit_code, message in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def write_columns(folder: Path) -> None:
    from safetensors.torch import save_file

    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if EMBEDDINGS[0] in tensors:
            tensors[EMBEDDINGS[0]] = tensors[EMBEDDINGS[0]][:, :8].contiguous()
            save_file(tensors, file)
