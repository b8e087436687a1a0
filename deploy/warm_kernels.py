"""Compile the kernels into their cache: tiny merges of every method and the usual dtypes, so that no worker waits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import yaml

import anabranch
from anabranch.engine.methods import METHODS
from anabranch.engine.models.header import build_header

SHAPES = {"layers.0.mlp.weight": (64, 512), "norm.weight": (512,)}
DTYPES = {"BF16": ("bfloat16", np.uint16), "F16": ("float16", np.float16), "F32": ("float32", np.float32)}
"""For each dtype its name in recipes, and what numpy holds its bytes in."""
REQUIRED = {"t": 0.5}
"""Values of parameters without a default; densities have a list of their own."""
BASE, *MODELS = "./base", "./first", "./second"
DENSITIES = ({"density": 0.25}, {"density": {"tadrop": {"mean": 0.25}}})
OTHERS = (
    {"merge_method": "magnitude", "parameters": {"density": 0.25, "conflict": "sequential", "rescale": True}},
    {"merge_method": "ties", "parameters": {"density": 0.25, "scope": "model", "lambda": 0.5}},
    {"merge_method": "nuslerp", "parameters": {"nuslerp_flatten": False}},
    {"merge_method": "nuslerp", "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}},
)


def main() -> None:
    """Merge everything once."""
    with tempfile.TemporaryDirectory() as folder:
        for dtype, (out_dtype, _) in DTYPES.items():
            place = Path(folder) / dtype
            for seed, name in enumerate((BASE, *MODELS)):
                write_model(place / name, dtype, seed)
            for i, recipe in enumerate(recipes()):
                path = place / f"{i}.yml"
                path.write_text(yaml.safe_dump(recipe | {"out_dtype": out_dtype}))
                anabranch.merge(path, place / f"out-{i}")
                if recipe["merge_method"] == "emr":
                    warm_task(place, i)


def warm_task(place: Path, i: int) -> None:
    """The model of a task of output i, which is computed while it is read."""
    model = f"{BASE}+./out-{i}/{MODELS[0].rpartition('/')[2]}"
    path = place / f"task-{i}.yml"
    path.write_text(yaml.safe_dump({"merge_method": "passthrough", "models": [{"model": model}]}))
    anabranch.merge(path, place / f"task-{i}")


def recipes() -> list[dict[str, object]]:
    """One per method and way to choose densities, and what takes other paths."""
    weighted = [{"model": name, "parameters": {"weight": 0.5}} for name in MODELS]
    made: list[dict[str, object]] = [{"models": weighted, "base_model": BASE} | other for other in OTHERS]
    for schema in (method.schema for method in METHODS.values()):
        models = weighted if "weight" in schema.parameters else [{"model": name} for name in MODELS]
        common = {"models": models[: schema.most]} | ({"base_model": BASE} if schema.base == "required" else {})
        given = {name: value for name, value in REQUIRED.items() if name in schema.parameters}
        densities = DENSITIES if "density" in schema.parameters else ({},)
        made += [common | {"merge_method": schema.name, "parameters": given | density} for density in densities]
    return made


def write_model(folder: Path, dtype: str, seed: int) -> None:
    """A checkpoint of small random weights; the halves of float32 numbers are those of bfloat16."""
    folder.mkdir(parents=True)
    header, infos = build_header([(name, dtype, shape) for name, shape in SHAPES.items()], {"format": "pt"})
    random = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        for info in infos:
            values = random.standard_normal(info.numel).astype(np.float32)
            stored = (values.view(np.uint32) >> 16) if dtype == "BF16" else values
            file.write(stored.astype(DTYPES[dtype][1]).tobytes())
    (folder / "config.json").write_text("{}")


if __name__ == "__main__":
    main()
