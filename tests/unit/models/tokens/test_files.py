"""Files beside the weights when vocabulary or chat template change."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from anabranch.engine.errors import InputError
from anabranch.engine.models.tokens.chat_template import most_common_template, template_of
from anabranch.engine.models.tokens.files import VocabularyFiles
from anabranch.engine.models.tokens.tokenizer_json import AddedToken, TokenizerEdit, read_tokenizer
from anabranch.engine.recipe.chat_templates import CHAT_TEMPLATES

NOTHING = TokenizerEdit()
MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
ADDED = [{"id": 3, **AddedToken("<s>", special=True).flags()}, {"id": 4, **AddedToken("<x>").flags()}]
FILES: dict[str, bytes] = {
    "config.json": b'{"vocab_size":9,"eos_token_id":[3,4],"pad_token_id":-1,"bos_token_id":3,"n":3}',
    "generation_config.json": b'{"eos_token_id":4,"vocab_size":9}',
    "tokenizer.json": json.dumps({"added_tokens": ADDED, "model": MODEL}).encode(),
    "tokenizer_config.json": json.dumps({"added_tokens_decoder": {"3": {}, "4": {}}, "eos_token": "<s>"}).encode(),
    "added_tokens.json": b'{"<x>": 4, "<s>": 3}',
    "vocab.json": b"{}",
    "merges.txt": b"",
    "README.md": b"",
}


def files_with(
    rows: int | None = None, edit: TokenizerEdit = NOTHING, new_ids: dict[int, int | None] | None = None, text: str = ""
) -> VocabularyFiles:
    added = edit.apply(read_tokenizer(FILES["tokenizer.json"], "t")).numbered()
    return VocabularyFiles(rows, edit, added, new_ids or {}, text)


def changed(files: VocabularyFiles) -> dict[str, Any]:
    """What differs, as JSON where it is."""
    result = files.apply(FILES, "m")
    found = {name: data for name, data in result.items() if data != FILES.get(name)}
    assert set(FILES) - set(result) <= {"vocab.json", "merges.txt"}
    return {name: json.loads(data) if name.endswith(".json") else data.decode() for name, data in found.items()}


def test_nothing_changes_without_a_request() -> None:
    assert changed(files_with(None, NOTHING, {}, "")) == {}
    assert changed(files_with(9, NOTHING, {}, "")) == {}


def test_sizes_and_ids_follow_the_vocabulary() -> None:
    files = files_with(7, NOTHING, {3: 0, 4: None}, "")
    found = changed(files)
    assert found["config.json"] == {
        "vocab_size": 7, "eos_token_id": [0], "pad_token_id": -1, "bos_token_id": 0, "n": 3,
    }  # fmt: skip
    assert found["generation_config.json"] == {"eos_token_id": None, "vocab_size": 9}
    assert set(found) == {"config.json", "generation_config.json"}
    assert files.lost(FILES, "m") == ["config.json: eos_token_id", "generation_config.json: eos_token_id"]


def test_the_language_model_inside_a_larger_config() -> None:
    config = {"text_config": {"vocab_size": 5, "bos_token_id": 1}, "image_token_index": 2}
    result = files_with(6, NOTHING, {1: 3, 2: 4}, "").apply({"config.json": json.dumps(config).encode()}, "m")
    assert json.loads(result["config.json"]) == {
        "text_config": {"vocab_size": 6, "bos_token_id": 3},
        "image_token_index": 4,
    }


def test_appended_tokens_are_in_every_list() -> None:
    found = changed(files_with(None, TokenizerEdit(appended=(AddedToken("<y>", lstrip=True),)), {}, ""))
    assert [entry["content"] for entry in found["tokenizer.json"]["added_tokens"]] == ["<s>", "<x>", "<y>"]
    decoder = found["tokenizer_config.json"]["added_tokens_decoder"]
    assert list(decoder) == ["3", "4", "5"]
    assert decoder["5"] == {
        "content": "<y>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": True, "special": False,
    }  # fmt: skip
    assert found["added_tokens.json"] == {"<s>": 3, "<x>": 4, "<y>": 5}
    assert set(found) == {"tokenizer.json", "tokenizer_config.json", "added_tokens.json"}


def test_vocabularies_of_slow_tokenizers_go_when_they_would_be_wrong() -> None:
    kept = files_with(None, TokenizerEdit(dropped=frozenset({"<x>"})), {}, "").apply(FILES, "m")
    assert {"vocab.json", "merges.txt"} <= set(kept)
    left = files_with(None, TokenizerEdit(dropped=frozenset({"ab", "<x>"})), {}, "").apply(FILES, "m")
    assert not {"vocab.json", "merges.txt"} & set(left)
    assert json.loads(left["tokenizer.json"])["model"] == {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}


def test_a_chat_template_is_written_where_readers_look() -> None:
    found = changed(files_with(None, NOTHING, {}, "{{ x }}"))
    assert found["chat_template.jinja"] == "{{ x }}"
    assert found["tokenizer_config.json"]["chat_template"] == "{{ x }}"


def test_files_of_another_form_are_an_error() -> None:
    with pytest.raises(InputError, match=r"m/config.json is not a JSON object"):
        files_with(3, NOTHING, {}, "").apply({"config.json": b"[]"}, "m")
    with pytest.raises(InputError, match=r"m/tokenizer_config.json is not a JSON object"):
        files_with(None, NOTHING, {}, "{{x}}").apply({"tokenizer_config.json": b"\xff"}, "m")


# --- chat templates


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, ""),
        ({"chat_template.jinja": b" {{a}}\n"}, "{{a}}"),
        ({"tokenizer_config.json": b'{"chat_template": "{{b}}"}'}, "{{b}}"),
        ({"chat_template.jinja": b"{{a}}", "tokenizer_config.json": b'{"chat_template": "{{b}}"}'}, "{{a}}"),
        ({"tokenizer_config.json": b'{"chat_template": [{"name": "default", "template": "{{c}}"}]}'}, "{{c}}"),
        ({"tokenizer_config.json": b'{"chat_template": {"tool_use": "{{d}}"}}'}, ""),
        ({"tokenizer_config.json": b'{"chat_template": 1}'}, ""),
        ({"tokenizer_config.json": b"[]"}, ""),
        ({"tokenizer_config.json": b"\xff"}, ""),
    ],
)
def test_the_template_of_a_folder(files: dict[str, bytes], template: str) -> None:
    assert template_of(files) == template


def test_the_most_common_template() -> None:
    assert most_common_template(["", "a", "b", "b"]) == "b"
    assert most_common_template(["", "b", "a", "a", "b"]) == "b"
    assert most_common_template(["", ""]) == ""


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    "Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be brief.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]",
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye\n\n### Response:\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
}


def rendered(name: str, messages: list[dict[str, str]]) -> str:
    texts, _ = render_jinja_template(
        [messages], chat_template=CHAT_TEMPLATES[name], add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    return str(texts[0])


@pytest.mark.parametrize("name", list(CHAT_TEMPLATES))
def test_templates_with_names(name: str) -> None:
    assert rendered(name, TALK) == RENDERED[name]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("exaone", "[|system|][|endofturn|]\n[|user|]Hi\n"),
        ("alpaca", "### Instruction:\nHi\n\n"),
        ("mistral", "<s> [INST] Hi"),
    ],
)
def test_templates_without_a_system_message(name: str, start: str) -> None:
    assert rendered(name, TALK[1:2]).startswith(start)


def test_mistral_s_turns_alternate() -> None:
    with pytest.raises(Exception, match="turns must go user, assistant"):
        rendered("mistral", [TALK[1], TALK[3]])
