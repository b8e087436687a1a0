"""Whole merges against outputs of the published code and of the specification; compared with ==, not bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ..merging import merge_tensors

DATA = Path(__file__).parent / "data"


def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found == expected).all())


def test_cabs_prunes_like_the_published_roberta_script(tmp_path: Path) -> None:
    data = golden("01_roberta_nm_fp32_tail")
    zero = {"w": torch.zeros_like(data["tau1"])}
    recipe = {
        "merge_method": "cabs",
        "parameters": {"block": 32, "tail": "drop", "overlap": "never", "density": 3 / 32},
    }
    for weights, expected in (((1.0, 0.0), "out1"), ((0.0, 1.0), "out2")):
        models = [{"w": data["tau1"]}, {"w": data["tau2"]}]
        out = merge_tensors(tmp_path / expected, zero, models, recipe, weights)
        assert equal(out["w"], data[expected])


@pytest.mark.parametrize("n", [64, 192])
def test_cabs_prunes_like_the_published_7b_script(tmp_path: Path, n: int) -> None:
    data = golden(f"08_7b_nm_{n}_256")
    zero = {"w": torch.zeros_like(data["tau1"])}
    recipe = {"merge_method": "cabs", "parameters": {"block": 256, "density": n / 256}}
    for weights, expected in (((1.0, 0.0), "out1"), ((0.0, 1.0), "out2")):
        models = [{"w": data["tau1"]}, {"w": data["tau2"]}]
        out = merge_tensors(tmp_path / expected, zero, models, recipe, weights)
        assert equal(out["w"], data[expected])


FITTING, SHARING = ((8, 8, 16), (1.2, 1.1, 0.9)), ((20, 16, 14), (1.0, 0.8, 0.6))
"""How many of 32 each model takes, and the weights."""
BLOCK_CASES = {
    "20_spec_k3_no_overlap": FITTING,
    "21_spec_k3_overlap": SHARING,
    "25_spec_zeros_no_overlap": FITTING,
    "27_spec_zeros_overlap": SHARING,
}


@pytest.mark.parametrize("case", BLOCK_CASES)
@pytest.mark.parametrize("overlap_merge", ["sum", "ties"])
def test_cabs_merges_three_models(tmp_path: Path, case: str, overlap_merge: str) -> None:
    data = golden(case)
    ns, weights = BLOCK_CASES[case]
    # The stored task vectors are exact only over a zero base: W_i - W0 rounds.
    zero = {"w": torch.zeros_like(data["base"])}
    models = [{"w": data[f"tau{i}"]} for i in range(3)]
    recipe = {"merge_method": "cabs", "parameters": {"block": 32, "overlap_merge": overlap_merge}}
    out = merge_tensors(tmp_path, zero, models, recipe, weights, [n / 32 for n in ns])
    assert equal(data["base"] + out["w"], data[f"merged_{overlap_merge}"])


TASK_VECTOR_CASES = {
    "ta": {"merge_method": "task_arithmetic"},
    "ta_lam0.3": {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.3}},
    "ta_norm": {"merge_method": "task_arithmetic", "parameters": {"normalize": True}},
    "breadcrumbs_d0.5_g0.05": {"merge_method": "breadcrumbs", "parameters": {"density": 0.5, "gamma": 0.05}},
    "ties_d0.2": {"merge_method": "ties", "parameters": {"density": 0.2}},
    "ties_d0.2_nonorm": {"merge_method": "ties", "parameters": {"density": 0.2, "normalize": False}},
    "ties_d0.2_lam0.7_int8": {"merge_method": "ties", "parameters": {"density": 0.2, "lambda": 0.7, "int8_mask": True}},
}


@pytest.mark.parametrize("case", TASK_VECTOR_CASES)
def test_task_vector_methods_equal_mergekit_in_fp32(tmp_path: Path, case: str) -> None:
    data = golden("13_mergekit_gta_fp32")
    models = [{"w": data[f"m{i}"]} for i in range(3)]
    recipe: dict[str, Any] = TASK_VECTOR_CASES[case]
    out = merge_tensors(tmp_path, {"w": data["base"]}, models, recipe, (1.0, 0.7, 0.4))
    assert equal(out["w"], data[case]), float((out["w"] - data[case]).abs().max())


@pytest.mark.parametrize(("case", "topk"), [("sce_1.0", 1.0), ("sce_0.3", 0.3)])
def test_sce_equals_mergekit(tmp_path: Path, case: str, topk: float) -> None:
    data = golden("13_mergekit_gta_fp32")
    models = [{"w": data[f"m{i}"]} for i in range(3)]
    recipe = {"merge_method": "sce", "parameters": {"select_topk": topk, "int8_mask": True}}
    out = merge_tensors(tmp_path, {"w": data["base"]}, models, recipe)
    torch.testing.assert_close(out["w"], data[case], rtol=1e-6, atol=1e-6)
    assert equal((out["w"] != data["base"]), (data[case] != data["base"]))


def test_sce_weighs_small_changes_too(tmp_path: Path) -> None:
    """The stored output has equal weights, because mergekit takes energies below 1e-6 for none. Here they count."""
    data = golden("13_mergekit_gta_fp32")
    models, base = [{"w": data["s0"]}, {"w": data["s1"]}], data["base"]
    assert data["sce_small_weights"].tolist() == [0.5, 0.5]
    out = merge_tensors(tmp_path, {"w": base}, models, {"merge_method": "sce"})["w"]
    t = [model["w"].double() - base.double() for model in models]
    energy = [float((x * x).mean()) for x in t]
    positive = t[0] + t[1] >= 0
    agree = [((x > 0) == positive) & (x != 0) for x in t]
    weights = [e * a for e, a in zip(energy, agree, strict=True)]
    merged = (weights[0] * t[0] + weights[1] * t[1]) / (weights[0] + weights[1]).clamp(min=1e-30)
    torch.testing.assert_close(out.double(), base.double() + merged, rtol=0, atol=1e-6 * float(base.abs().max()))
    assert abs(energy[0] - energy[1]) > 0.01 * energy[0]
    assert not equal(out, data["sce_small"])


SPARSE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mag_fp32_d0.1": ("magnitude", {"density": 0.1}),
    "mag_fp32_d0.3": ("magnitude", {"density": 0.3}),
    "mag_fp32_d0.55": ("magnitude", {"density": 0.55}),
    "outl_fp32_d0.3_g0.01": ("breadcrumbs", {"density": 0.3, "gamma": 0.01}),
    "outl_fp32_d0.3_g0.05": ("breadcrumbs", {"density": 0.3, "gamma": 0.05}),
    "outl_fp32_d0.3_g0.8": ("breadcrumbs", {"density": 0.3, "gamma": 0.8}),
    "mag_fp32_d0.3_l1": ("magnitude", {"density": 0.3, "rescale": True, "rescale_norm": "l1"}),
    "mag_fp32_d0.3_l2": ("magnitude", {"density": 0.3, "rescale": True, "rescale_norm": "l2"}),
}


@pytest.mark.parametrize("case", SPARSE_CASES)
def test_sparse_methods_keep_what_mergekit_keeps(tmp_path: Path, case: str) -> None:
    data = golden("11_mergekit_sparsify")
    method, parameters = SPARSE_CASES[case]
    zero = {"w": torch.zeros_like(data["x_fp32"])}
    recipe = {"merge_method": method, "parameters": parameters}
    out = merge_tensors(tmp_path, zero, [{"w": data["x_fp32"]}], recipe, (1.0,))
    if "rescale" in parameters:  # the sums behind the norms have another order there
        torch.testing.assert_close(out["w"], data[case], rtol=1e-6, atol=0)
    else:
        assert equal(out["w"], data[case])


def test_a_band_without_outliers_is_not_empty(tmp_path: Path) -> None:
    """The stored output is what mergekit made of int(gamma * N) = 0: nothing. Here nothing is left out then."""
    data = golden("11_mergekit_sparsify")
    assert not data["outl_y50_d0.9_g0.01"].any()
    zero = {"w": torch.zeros_like(data["y50"])}
    recipe = {"merge_method": "breadcrumbs", "parameters": {"density": 0.9}}
    out = merge_tensors(tmp_path, zero, [{"w": data["y50"]}], recipe, (1.0,))
    assert int((out["w"] != 0).sum()) == 45
    assert equal(out["w"], data["y50"] * (data["y50"].abs() >= data["y50"].abs().sort().values[5]))


def test_linear_equals_the_formula(tmp_path: Path) -> None:
    data = golden("15_mergekit_sphere")
    models = [{"w": data[f"m{i}"]} for i in range(3)]
    out = merge_tensors(tmp_path, None, models, {"merge_method": "linear"}, (1.0, 0.7, 0.4))
    torch.testing.assert_close(out["w"], data["linear"], rtol=1e-5, atol=1e-7)


SPHERE_CASES = {
    "slerp_t0.3": ({"merge_method": "slerp", "parameters": {"t": 0.3}}, "base", ["m0"], None),
    "slerp_far_t0.3": ({"merge_method": "slerp", "parameters": {"t": 0.3}}, "d0", ["d1"], None),
    "karcher": ({"merge_method": "karcher"}, None, ["m0", "m1", "m2"], None),
    "karcher_far": ({"merge_method": "karcher"}, None, ["d0", "d1", "d2"], None),
    "multislerp": ({"merge_method": "multislerp"}, "base", ["m0", "m1", "m2"], (0.5, 0.3, 0.2)),
    "model_stock": ({"merge_method": "model_stock"}, "base", ["m0", "m1", "m2"], None),
    "model_stock_filter": (
        {"merge_method": "model_stock", "parameters": {"filter_wise": True}},
        "base",
        ["m0", "m1", "m2"],
        None,
    ),
}


@pytest.mark.parametrize("case", SPHERE_CASES)
def test_coefficient_methods_equal_mergekit(tmp_path: Path, case: str) -> None:
    data = golden("15_mergekit_sphere")
    data |= {f"d{i}": data[f"m{i}"] - data["base"] for i in range(3)}  # the far tensors are differences
    recipe, base, names, weights = SPHERE_CASES[case]
    reference = None if base is None else {"w": data[base]}
    out = merge_tensors(tmp_path, reference, [{"w": data[name]} for name in names], recipe, weights)
    torch.testing.assert_close(out["w"], data[case], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("normalize", "expected"), [(True, "dis_mean"), (False, "dis_sum")])
def test_ties_over_the_whole_model_equals_the_official_code(tmp_path: Path, normalize: bool, expected: str) -> None:
    data = golden("17_ties_official")
    cut = 70  # the flattened vector as two tensors: the threshold must span both
    models = [{"a": row[:cut].reshape(10, 7), "b": row[cut:]} for row in data["flat"]]
    zero = {"a": torch.zeros(10, 7), "b": torch.zeros(80)}
    recipe = {"merge_method": "ties", "parameters": {"density": 0.2, "scope": "model", "normalize": normalize}}
    out = merge_tensors(tmp_path, zero, models, recipe, (1.0, 1.0, 1.0))
    found = torch.cat([out["a"].reshape(-1), out["b"]])
    torch.testing.assert_close(found, data[expected], rtol=1e-6, atol=0)


def test_tadrop_with_a_target_equals_the_specified_budget(tmp_path: Path) -> None:
    data = golden("24_spec_adaptive_density")
    import pyarrow.parquet

    model = {f"t{i}": data[f"t{i}"] for i in range(4)}
    zero = {name: torch.zeros_like(t) for name, t in model.items()}
    density = {"tadrop": {"mean": 0.25, "spread": 0.1}}
    merge_tensors(tmp_path, zero, [model], {"merge_method": "magnitude"}, (1.0,), [density])
    table = pyarrow.parquet.read_table(tmp_path / "out" / "anabranch.tensors.parquet").to_pylist()
    densities = {row["tensor"]: row["density"] for row in table}
    expected = data["s_budget_S.75_a.1"].tolist()
    for i in range(3):
        assert densities[f"t{i}"] == pytest.approx(1 - expected[i], abs=1e-12)
    assert densities["t3"] == 0.0
