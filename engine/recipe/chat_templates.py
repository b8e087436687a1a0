"""Chat templates that recipes can name."""

from __future__ import annotations

from collections.abc import Mapping

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
