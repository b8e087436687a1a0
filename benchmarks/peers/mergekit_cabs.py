"""Peer: CABS as a plug-in of mergekit 0.1.5, ``torch.topk`` over the blocks of the whole tensor.

.bench/mergekit-venv/bin/python benchmarks/peers/mergekit_cabs.py RECIPE OUT [options of mergekit-yaml]
"""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"
from __future__ import annotations

import torch
from mergekit.merge_methods.base import BasePolicy, InputContract, PerNonBase, TensorGroup
from mergekit.merge_methods.easy_define import merge_method
from mergekit.merge_methods.registry import register
from mergekit.scripts.run_yaml import main


@merge_method(name="cabs", contract=InputContract(base=BasePolicy.REQUIRED))
def cabs(group: TensorGroup, weight: PerNonBase[float], density: PerNonBase[float], block: int = 256) -> torch.Tensor:
    assert group.base is not None
    base = group.base.tensor
    total = torch.zeros_like(base)
    taken = torch.zeros(base.numel(), dtype=torch.bool)
    padding = -base.numel() % block
    for entry in group.non_base:
        change = (entry.tensor - base).flatten()
        score = change.abs().masked_fill_(taken, 0)
        rows = torch.nn.functional.pad(score, (0, padding)).view(-1, block)
        chosen = rows.topk(int(density[entry.id] * block + 0.5), dim=1).indices
        mask = torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, chosen, True)
        kept = mask.flatten()[: base.numel()] & (score > 0)
        taken |= kept
        total += (change * kept * weight[entry.id]).view(base.shape)
    return base + total


if __name__ == "__main__":
    register(cabs)
    main()
