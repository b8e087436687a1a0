"""The chat templates that recipes can name, rendered beside mergekit's of the same names."""

from __future__ import annotations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from anabranch.engine.recipe.chat_templates import CHAT_TEMPLATES

from .peer import PYTHON

pytestmark = pytest.mark.parity

TEXTS = {"system": " Be terse.", "user": "Hi ", "assistant": "Yes?"}
CONVERSATIONS = [
    roles.split() for roles in ("user", "user assistant", "system user", "system user assistant user assistant user")
]


def render(template: str, roles: list[str]) -> str:
    """As transformers does before a model answers."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": role, "content": TEXTS[role]} for role in roles]
    return environment.from_string(template).render(
        messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=roles[-1] == "user"
    )


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
@pytest.mark.parametrize("roles", CONVERSATIONS, ids="-".join)
def test_a_named_template_renders_as_mergekits_does(name: str, roles: list[str]) -> None:
    [theirs] = PYTHON.parents[1].glob(f"lib/python*/site-packages/mergekit/_data/chat_templates/{name}.jinja")
    ours, peer = render(CHAT_TEMPLATES[name], roles), render(theirs.read_text(), roles)
    if name in ("chatml", "mistral"):
        assert ours == peer
    else:  # mergekit's have line feeds and blanks that the published formats have not
        assert ours != peer
        assert "".join(ours.split()) == "".join(peer.split())
