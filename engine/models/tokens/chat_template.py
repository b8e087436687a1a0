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
