"""LoRA adapters for tests: written as PEFT saves them, and the plain formula of what they make of a base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."
CONFIG: Mapping[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 6,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "lora_dropout": 0.1,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_modules": ["q_proj"],
    "use_dora": False,
    "use_rslora": False,
}


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """An adapter; names of tensors without the prefix `base_model.model.`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    named = {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def product(a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """scale * (B @ A), the sum over the rank in order, each operation rounded to fp32."""
    total = torch.zeros(b.shape[0], a.shape[1])
    for j in range(a.shape[0]):
        total = total + b[:, j : j + 1].float() * a[j : j + 1].float()
    return total * torch.tensor(scale, dtype=torch.float64).float()
