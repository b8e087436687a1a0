"""One module under several names: the same merge, however the two checkpoints call their tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.engine.errors import InputError, RecipeError
from anabranch.engine.plan.inputs import open_inputs
from anabranch.engine.plan.plan import Plan
from anabranch.engine.recipe.parse import load_recipe

from ..adapters import write_adapter
from ..merging import load_output, merge, write_checkpoint, write_recipe

Tensors = dict[str, torch.Tensor]
Rename = Callable[[str], str]

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
LLAVA = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
QWEN_VL = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
BERT = {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
UNKNOWN = {"architectures": ["NoSuchModel"], "model_type": "no_such_type"}
NOTHING: dict[str, Any] = {}


def llama(prefix: str = "model.", layers: int = 2) -> list[str]:
    names = [f"{prefix}embed_tokens.weight", f"{prefix}norm.weight", "lm_head.weight"]
    return names + [
        f"{prefix}layers.{i}.{n}.weight" for i in range(layers) for n in ("self_attn.q_proj", "mlp.up_proj")
    ]


GPT2_NAMES = [
    "wte.weight",
    "wpe.weight",
    "h.0.attn.c_attn.weight",
    "h.0.ln_1.weight",
    "h.11.ln_1.weight",
    "ln_f.weight",
]
LLAVA_NEW = [
    *("model.language_model.embed_tokens.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
    *("model.language_model.norm.weight", "lm_head.weight", "model.multi_modal_projector.linear_1.weight"),
    *("model.vision_tower.vision_model.embeddings.patch_embedding.weight",),
]
QWEN_NEW = [
    *("model.language_model.embed_tokens.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
    *("model.language_model.norm.weight", "lm_head.weight", "model.visual.patch_embed.proj.weight"),
    *("model.visual.blocks.0.norm1.weight",),
]
BERT_NEW = [
    *("bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"),
    *("bert.encoder.layer.0.output.LayerNorm.weight", "cls.predictions.transform.LayerNorm.bias"),
]


def old_llava(name: str) -> str:
    for new, old in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", ""),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise AssertionError(name)


def old_qwen(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def old_norms(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def without(prefix: str) -> Rename:
    return lambda name: name.removeprefix(prefix)


def with_prefix(prefix: str) -> Rename:
    return lambda name: prefix + name


KINDS: dict[str, tuple[list[str], Rename, dict[str, Any]]] = {
    "base model's prefix": (llama(), without("model."), LLAMA),
    "compiled": (llama(), with_prefix("_orig_mod."), LLAMA),
    "compiled inside": (llama(), lambda name: name.replace("layers.0.", "layers.0._orig_mod."), LLAMA),
    "data parallel": (llama(), with_prefix("module."), LLAMA),
    "compiled and parallel": (llama(), with_prefix("module._orig_mod."), LLAMA),
    "sharded": (llama(), lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module."), LLAMA),
    "peft": (llama(), with_prefix("base_model.model."), LLAMA),
    "gpt2": ([f"transformer.{name}" for name in GPT2_NAMES], without("transformer."), GPT2),
    "llava before 4.52": (LLAVA_NEW, old_llava, LLAVA),
    "qwen before 4.52": (QWEN_NEW, old_qwen, QWEN_VL),
    "old norms": (BERT_NEW, old_norms, BERT),
    "bert's prefix and old norms": (BERT_NEW, lambda name: old_norms(name.removeprefix("bert.")), BERT),
    "unknown: prefix": (llama(), without("model."), UNKNOWN),
    "unknown: another prefix": (llama(), lambda name: name.replace("model.", "transformer.", 1), UNKNOWN),
    "unknown: vision-language": (LLAVA_NEW, old_llava, UNKNOWN),
    "unknown: old norms": (BERT_NEW, old_norms, UNKNOWN),
    "no config: wrapped": (llama(), with_prefix("module.base_model.model."), NOTHING),
}


class Merge:
    """A base and a fine-tune, written under names of their own."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(3)
        self.base = {name: torch.randn(6, 4, generator=generator) for name in names}
        self.tuned = {name: torch.randn(6, 4, generator=generator) for name in names}
        self.more: dict[str, Any] = {}
        self.entry: dict[str, Any] = {}

    def expected(self) -> Tensors:
        return {name: base + 0.5 * (self.tuned[name] - base) for name, base in self.base.items()}

    def recipe(
        self, base: Rename, model: Rename, base_config: dict[str, Any], model_config: dict[str, Any] | None = None
    ) -> Path:
        own = base_config if model_config is None else model_config
        write_checkpoint(self.folder / "base", {base(n): t for n, t in self.base.items()}, 2, base_config or {"a": 1})
        write_checkpoint(self.folder / "model", {model(n): t for n, t in self.tuned.items()}, 1, own or {"a": 1})
        entry = {"model": str(self.folder / "model"), "parameters": {"weight": 0.5}} | self.entry
        content = {"merge_method": "task_arithmetic", "base_model": str(self.folder / "base"), "models": [entry]}
        return write_recipe(self.folder / "recipe.yml", content | self.more)

    def merged(self, recipe: Path) -> Tensors:
        merge(recipe, self.folder / "out")
        return load_output(self.folder / "out")


def planned(recipe: Path) -> Plan:
    return open_inputs(load_recipe(recipe), recipe.parent).plan


def same(name: str) -> str:
    return name


def assert_equal(found: Tensors, expected: Tensors, rename: Rename = same) -> None:
    assert set(found) == {rename(name) for name in expected}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[rename(name)], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("renamed", ["base", "model"])
def test_the_same_module_under_another_name_is_the_same_tensor(tmp_path: Path, kind: str, renamed: str) -> None:
    names, rename, config = KINDS[kind]
    case = Merge(tmp_path, names)
    base, model = (rename, same) if renamed == "base" else (same, rename)
    recipe = case.recipe(base, model, config)
    assert_equal(case.merged(recipe), case.expected(), base)
    changed = sum(base(name) != model(name) for name in names)
    [note] = [note for note in planned(recipe).notes if "names that differ" in note]
    assert f"({changed}): " in note


@pytest.mark.parametrize("base", [same, old_llava])
def test_a_language_model_by_itself_is_that_of_a_larger_model(tmp_path: Path, base: Rename) -> None:
    case = Merge(tmp_path, LLAVA_NEW)
    for name in LLAVA_NEW:
        if "vision" in name or "projector" in name:
            del case.tuned[name]
    recipe = case.recipe(base, lambda name: name.replace("model.language_model.", "model."), LLAVA, LLAMA)
    expected = case.base | {n: t + 0.5 * (case.tuned[n] - t) for n, t in case.base.items() if n in case.tuned}
    assert_equal(case.merged(recipe), expected, base)
    assert any("2 of the reference's tensors" in warning for warning in planned(recipe).warnings)


def test_a_note_says_each_difference_with_its_count(tmp_path: Path) -> None:
    names, rename, config = KINDS["llava before 4.52"]
    [note] = planned(Merge(tmp_path, names).recipe(same, rename, config)).notes
    for words in (
        *("(6): ", "language_model.model is model.language_model (3)", "prefix model. put before (2)"),
        *("prefix language_model. left out (1)",),
    ):
        assert words in note


def test_models_without_a_config_are_named_as_the_base_is(tmp_path: Path) -> None:
    names, rename, config = KINDS["qwen before 4.52"]
    case = Merge(tmp_path, names)
    assert_equal(case.merged(case.recipe(rename, same, config, {"a": 1})), case.expected(), rename)


def test_equal_names_leave_no_trace(tmp_path: Path) -> None:
    plan = planned(Merge(tmp_path, llama()).recipe(same, same, LLAMA))
    assert plan.notes == ()
    assert all("reading" not in entry for entry in plan.inputs)


def test_a_name_that_could_mean_two_tensors_is_refused(tmp_path: Path) -> None:
    case = Merge(tmp_path, llama())
    case.tuned["norm.weight"] = torch.zeros(6, 4)
    with pytest.raises(InputError, match=r"'norm\.weight' and 'model\.norm\.weight' could all be") as refused:
        planned(case.recipe(same, lambda name: name if "norm" in name else name.removeprefix("model."), LLAMA))
    assert "`names`" in str(refused.value.hint)


def test_two_names_that_could_mean_one_tensor_are_refused(tmp_path: Path) -> None:
    case = Merge(tmp_path, llama())
    case.base["norm.weight"] = torch.zeros(6, 4)
    with pytest.raises(InputError, match=r"'module\.model\.norm\.weight' could be several tensors"):
        planned(case.recipe(same, lambda name: f"module.{name}", LLAMA))


def test_a_recipe_maps_names_that_no_rule_knows(tmp_path: Path) -> None:
    def own(name: str) -> str:
        return name.replace("model.layers.", "blocks.").replace("mlp.up_proj", "ffn.w1")

    case = Merge(tmp_path, llama())
    case.entry = {"names": {"blocks.*": "model.layers.*"}}
    case.more = {"names": {"blocks.*.ffn.w1.weight": "model.layers.*.mlp.up_proj.weight"}}
    recipe = case.recipe(same, own, UNKNOWN)
    assert_equal(case.merged(recipe), case.expected())
    plan = planned(recipe)
    assert any("renamed by `names` of the recipe (4)" in note for note in plan.notes)
    assert plan.canonical_recipe["models"][0]["names"] == case.entry["names"] | case.more["names"]


def test_mapped_names_and_rules_go_together(tmp_path: Path) -> None:
    case = Merge(tmp_path, llama())
    case.more = {"names": {"*.q_projection.weight": "*.q_proj.weight"}}
    recipe = case.recipe(same, lambda n: f"module.{n.replace('q_proj', 'q_projection')}", LLAMA)
    assert_equal(case.merged(recipe), case.expected())


@pytest.mark.parametrize(
    ("entry", "more", "said"),
    [
        ({"names": {"nothing.*": "model.*"}}, {}, "no tensor of .* fits nothing"),
        ({}, {"names": {"nothing.*": "model.*"}}, "no tensor of any model fits nothing"),
        ({"names": {"*.q_proj.*": "*.up_proj.*", "*.self_attn.*": "*.mlp.*"}}, {}, "gives 2 names to several tensors"),
        ({"names": {"a.*.*": "b.*"}}, {}, "as many `\\*`"),
        ({"names": ["a"]}, {}, "expected a mapping such as"),
    ],
)
def test_mappings_that_cannot_be_meant_are_refused(
    tmp_path: Path, entry: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    case = Merge(tmp_path, llama())
    case.entry, case.more = entry, more
    if "names to several" in said:
        case.entry = {"names": {"*.self_attn.q_proj.*": "*.mlp.up_proj.*"}}
    with pytest.raises(RecipeError, match=said):
        planned(case.recipe(same, same, LLAMA))


def test_layers_that_only_one_model_has_are_named_as_the_others_are(tmp_path: Path) -> None:
    base = {name: torch.randn(6, 4) for name in llama(layers=1)}
    deep = {name: torch.randn(6, 4) for name in llama("", layers=3)}
    write_checkpoint(tmp_path / "base", base, 1, LLAMA | {"num_hidden_layers": 1})
    write_checkpoint(tmp_path / "deep", deep, 1, LLAMA | {"num_hidden_layers": 3})
    slices = [
        {"sources": [{"model": str(tmp_path / model), "layer_range": layers}]}
        for model, layers in (("base", [0, 1]), ("deep", [1, 3]))
    ]
    merge(write_recipe(tmp_path / "r.yml", {"merge_method": "passthrough", "slices": slices}), tmp_path / "out")
    found = load_output(tmp_path / "out")
    assert torch.equal(found["model.layers.2.mlp.up_proj.weight"], deep["layers.2.mlp.up_proj.weight"])
    assert torch.equal(found["model.norm.weight"], deep["norm.weight"])


@pytest.mark.parametrize(
    ("names", "rename", "config"),
    [
        ([f"transformer.{name}" for name in GPT2_NAMES], without("transformer."), GPT2),
        (LLAVA_NEW, old_llava, LLAVA),
        (QWEN_NEW, old_qwen, QWEN_VL),
        (llama(), without("model."), UNKNOWN),
    ],
    ids=["gpt2", "llava", "qwen", "unknown"],
)
@pytest.mark.parametrize("renamed", ["base", "adapter"])
def test_an_adapter_finds_modules_under_other_names(
    tmp_path: Path, names: list[str], rename: Rename, config: dict[str, Any], renamed: str
) -> None:
    base = {name: torch.randn(6, 4) for name in names}
    of_base, of_adapter = (rename, same) if renamed == "base" else (same, rename)
    write_checkpoint(tmp_path / "base", {of_base(n): t for n, t in base.items()}, 1, config)
    module = next(name for name in names if ".0." in name).removesuffix(".weight")
    a, b = torch.randn(2, 4), torch.randn(6, 2)
    own = of_adapter(f"{module}.weight").removesuffix(".weight")
    write_adapter(tmp_path / "adapter", {f"{own}.lora_A.weight": a, f"{own}.lora_B.weight": b}, r=2, lora_alpha=4)
    models = [{"model": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter")}]
    content = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    recipe = write_recipe(tmp_path / "r.yml", content)
    merge(recipe, tmp_path / "out")
    expected = base | {f"{module}.weight": base[f"{module}.weight"] + 2.0 * b @ a}
    assert_equal(load_output(tmp_path / "out"), expected, of_base)
    assert any("names that differ" in note and "(1): " in note for note in planned(recipe).notes)
