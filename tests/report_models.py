"""Models small enough for a test and shaped like real ones, for reports: layers, kinds of tensors, other changes."""

from __future__ import annotations

from pathlib import Path

import torch

from .merging import write_checkpoint, write_recipe

LAYERS, WIDTH = 16, 64
KINDS = {
    "self_attn.q_proj.weight": (WIDTH, WIDTH),
    "self_attn.k_proj.weight": (WIDTH // 2, WIDTH),
    "self_attn.v_proj.weight": (WIDTH // 2, WIDTH),
    "self_attn.o_proj.weight": (WIDTH, WIDTH),
    "mlp.gate_proj.weight": (2 * WIDTH, WIDTH),
    "mlp.up_proj.weight": (2 * WIDTH, WIDTH),
    "mlp.down_proj.weight": (WIDTH, 2 * WIDTH),
    "input_layernorm.weight": (WIDTH,),
    "post_attention_layernorm.weight": (WIDTH,),
}
MODELS = ("math", "code", "chat")
LACKING = "model.layers.3.mlp.up_proj.weight"
"""A tensor that the last model does not have."""


def write_models(folder: Path, layers: int = LAYERS) -> Path:
    """A base and three models whose changes grow with depth and are heavy-tailed in some kinds; returns a recipe."""
    generator = torch.Generator().manual_seed(5)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (256, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes |= {f"model.layers.{i}.{kind}": shape for i in range(layers) for kind, shape in KINDS.items()}
    base = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    write_checkpoint(folder / "base", {name: t.bfloat16() for name, t in base.items()})
    for number, model in enumerate(MODELS, 1):
        tuned = {}
        for place, (name, t) in enumerate(base.items()):
            change = torch.randn(t.shape, generator=generator) * 0.002 * (1 + place / len(base) * number)
            heavy = torch.rand(t.shape, generator=generator) < (0.05 if "mlp" in name else 0.4)
            tuned[name] = (t + change * torch.where(heavy, 6.0, 0.5)).bfloat16()
        if model == MODELS[-1]:
            del tuned[LACKING]
        write_checkpoint(folder / model, tuned)
    recipe = {
        "merge_method": "cabs",
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / model), "parameters": {"weight": 0.8}} for model in MODELS],
        "parameters": {"density": {"tadrop": {"mean": 0.42}}, "block": 64},
        "exclude": ["model.embed_tokens.*"],
    }
    return write_recipe(folder / "recipe.yml", recipe)
