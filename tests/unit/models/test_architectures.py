"""The table of architectures: equal to what the installed transformers says, and read as transformers reads names."""

from __future__ import annotations

import json

import pytest

from anabranch.engine.models.architectures import TABLE, Tie, find_architecture
from benchmarks.architectures import architecture_names, make_table

SAMPLE = [
    *("BertForMaskedLM", "BloomForCausalLM", "CLIPModel", "CohereForCausalLM", "DFineForObjectDetection"),
    *("Gemma3ForConditionalGeneration", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "LlamaForCausalLM"),
    *("LlavaForConditionalGeneration", "MixtralForCausalLM", "Qwen2VLForConditionalGeneration", "Qwen3MoeForCausalLM"),
    *("T5ForConditionalGeneration", "ViTModel", "BartForConditionalGeneration"),
]


def with_rules_in_place(table: dict) -> dict:
    """Entries whose rules do not depend on the numbers that sets of rules have."""

    def rule(item):
        return [table["rules"][item[0]], item[1]] if isinstance(item, list) else table["rules"][item]

    return {
        name: entry | {"rules": [rule(item) for item in entry.get("rules", ())]}
        for name, entry in table["architectures"].items()
    }


def compared(names: list[str]) -> tuple[dict, dict]:
    stored = json.loads(TABLE.read_bytes())
    own = with_rules_in_place(stored)
    made = make_table(names)
    assert stored["transformers"] == made["transformers"], "run `make architectures` after changing transformers"
    return {name: own[name] for name in names if name in own}, with_rules_in_place(json.loads(json.dumps(made)))


def test_the_table_is_what_transformers_says() -> None:
    stored, made = compared(SAMPLE)
    assert stored == made


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_table_is_what_transformers_says() -> None:
    stored, made = compared(architecture_names())
    assert stored == made


@pytest.mark.parametrize("name", SAMPLE)
def test_names_change_as_transformers_changes_them(name: str) -> None:
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    from benchmarks.architectures import build

    model = build(getattr(transformers, name))
    renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    found = find_architecture({"architectures": [name]})
    assert found is not None
    own = set(model.state_dict())
    olds = {old for key in own for old in (key, key.removeprefix(f"{model.base_model_prefix}."), f"model.{key}")}
    olds |= {key.replace("LayerNorm.weight", "LayerNorm.gamma") for key in own}
    olds |= {
        key.replace("model.language_model", "language_model.model").replace("model.visual", "visual") for key in own
    }
    for old in olds:
        assert found.canonical(old) == apply_renamings(old, renamings), old


def test_an_architecture_is_found_by_its_class_or_by_the_type_of_its_model() -> None:
    by_class = find_architecture({"architectures": ["NoSuchClass", "GPT2Model"], "model_type": "llama"})
    assert by_class is not None
    assert (by_class.name, by_class.prefix) == ("GPT2Model", "transformer")
    by_type = find_architecture({"architectures": None, "model_type": "gpt2"})
    assert by_type is not None
    assert by_type.name == "GPT2LMHeadModel"
    for unknown in ({}, {"architectures": "GPT2Model"}, {"architectures": [3], "model_type": ["gpt2"]}):
        assert find_architecture(unknown) is None


def test_what_is_tied_and_what_loading_passes_over_is_known() -> None:
    gpt2 = find_architecture({"architectures": ["GPT2LMHeadModel"]})
    assert gpt2 is not None
    assert gpt2.ties == (Tie("lm_head.weight", "transformer.wte.weight", "tie_word_embeddings", True),)
    assert gpt2.passes_over("h.0.attn.bias")
    llama = find_architecture({"model_type": "llama"})
    assert llama is not None
    assert [tie.default for tie in llama.ties] == [False]
    assert llama.passes_over("model.layers.0.self_attn.rotary_emb.inv_freq")
    resnet = find_architecture({"architectures": ["ResNetModel"]})
    assert resnet is not None
    assert resnet.is_buffer("embedder.embedder.normalization.running_mean")
