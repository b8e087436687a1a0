"""Chat templates that recipes can name, and the choice among those of the inputs.

Each lays messages out in a published format; the Jinja text is our own. They use what transformers offers to templates:
`messages`, `bos_token`, `eos_token`, `add_generation_prompt` and `raise_exception`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

TEMPLATE_NAME = "chat_template.jinja"
CONFIG_NAME = "tokenizer_config.json"

_SYSTEM_FIRST = (
    "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}"
    "{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages -%}"
)

CHAT_TEMPLATES: Mapping[str, str] = {
    "chatml": (
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    "llama3": (
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        "{{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' -}}"
        "{{- message['content'] | trim ~ '<|eot_id|>' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"
        "{%- endif -%}"
    ),
    "mistral": (
        _SYSTEM_FIRST + "{{- bos_token -}}"
        "{%- for message in turns -%}"
        "{%- if message['role'] != ('user' if loop.index0 is even else 'assistant') -%}"
        "{{- raise_exception('turns must go user, assistant, user, ... after one system message at most') -}}"
        "{%- elif message['role'] == 'user' -%}"
        "{{- ' [INST] ' ~ (system ~ '\\n\\n' if loop.first and system else '') ~ message['content'] ~ ' [/INST]' -}}"
        "{%- else -%}"
        "{{- ' ' ~ message['content'] ~ eos_token -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
    ),
    "alpaca": (
        _SYSTEM_FIRST + "{{- system | trim ~ '\\n\\n' if system else '' -}}"
        "{%- set titles = {'user': 'Instruction', 'user_context': 'Input', 'assistant': 'Response'} -%}"
        "{%- for message in turns if message['role'] in titles -%}"
        "{{- '### ' ~ titles[message['role']] ~ ':\\n' ~ message['content'] | trim ~ '\\n\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}"
    ),
    "exaone": (
        "{%- if messages[0]['role'] != 'system' -%}{{- '[|system|][|endofturn|]\\n' -}}{%- endif -%}"
        "{%- for message in messages -%}"
        "{{- '[|' ~ message['role'] ~ '|]' ~ message['content'] -}}"
        "{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '[|assistant|]' -}}{%- endif -%}"
    ),
}
"""By the name that a recipe may give."""


def template_of(files: Mapping[str, bytes]) -> str:
    """The chat template among the files of a tokenizer, as transformers finds it; empty without one.

    Args:
        files: contents by name; only chat_template.jinja, which goes first, and tokenizer_config.json matter.
    """
    if TEMPLATE_NAME in files:
        return files[TEMPLATE_NAME].decode("utf-8", "replace").strip()
    try:
        found: Any = json.loads(files.get(CONFIG_NAME, b"{}"))["chat_template"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    if isinstance(found, list):  # several templates with names
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return found.strip() if isinstance(found, str) else ""


def most_common_template(templates: Sequence[str]) -> str:
    """The one that most models have; of equally common ones the first. Models without a template do not count."""
    counts = Counter(template for template in templates if template)
    return max(counts, key=counts.__getitem__) if counts else ""
