"""The kernels against results of the published codes and of the specification (data/: each file says what it is)."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from anabranch.engine.kernels.cpu.tile_kernels import CpuKernels
from anabranch.engine.kernels.protocol import host
from anabranch.engine.kernels.row_sums import fold_rows
from anabranch.engine.kernels.torch.reference import TorchKernels

DATA = Path(__file__).parent / "data"


def golden(name):
    """Tensors as numpy arrays and the metadata of one file."""
    with safe_open(DATA / f"{name}.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(params=[CpuKernels(), TorchKernels()], ids=["cpu", "torch"])
def kernels(request):
    return request.param


def give(kernels, array):
    """A flat copy of an array for these kernels."""
    array = array.reshape(-1).copy()
    return array if isinstance(kernels, CpuKernels) else torch.from_numpy(array)


def select(kernels, ts, ns, m, *, overlap_never=False, drop_tail=False):
    """Masks of the models in order, and the claims."""
    claims, masks = give(kernels, np.zeros(ts[0].size, np.uint8)), []
    for t, n in zip(ts, ns, strict=True):
        mask = kernels.empty(t.size, "u8")
        kernels.mask_blocks(give(kernels, t), n, m, claims, mask, overlap_never, drop_tail)
        masks.append(host(mask))
    return masks, host(claims)


def assert_equal(got, expected):
    """Equal by ==, so that -0.0 is 0.0."""
    np.testing.assert_array_equal(np.ravel(got), np.ravel(expected))


def test_01_published_blocks_with_dropped_tail(kernels):
    data, _ = golden("01_roberta_nm_fp32_tail")
    ts = [data["tau1"], data["tau2"]]
    masks, claims = select(kernels, ts, [3, 3], 32, overlap_never=True, drop_tail=True)
    for t, mask, out in zip(ts, masks, (data["out1"], data["out2"]), strict=True):
        assert_equal(t.ravel() * mask, out)
    assert claims.max() == 1


def test_06_ties_go_to_the_lowest_index(kernels):
    data, _ = golden("06_roberta_nm_ties")
    ts = [data["tau1"], data["tau2"]]
    masks, _ = select(kernels, ts, [4, 4], 16)
    for i, (t, mask) in enumerate(zip(ts, masks, strict=True), 1):
        assert_equal(mask, data[f"stable_mask{i}"])
        assert_equal(t.ravel() * mask, data[f"stable_out{i}"])
        if i == 1:  # model 2 chooses among what another order of ties left free in the published run
            kept = np.sort(np.abs(t.ravel() * mask).reshape(-1, 16), axis=1)[:, -4:]
            assert_equal(kept, np.sort(data["block_kept_abs1"], axis=1))


@pytest.mark.parametrize("n", [64, 192])
def test_08_published_7b_blocks(kernels, n):
    data, _ = golden(f"08_7b_nm_{n}_256")
    ts = [data["tau1"].astype(np.float32), data["tau2"].astype(np.float32)]
    masks, _ = select(kernels, ts, [n, n], 256)
    for t, mask, out in zip(ts, masks, (data["out1"], data["out2"]), strict=True):
        assert_equal(t.ravel() * mask, out)


def accumulate(kernels, x, mask, divisor):
    acc, active = give(kernels, np.zeros(x.size, np.float32)), give(kernels, np.zeros(x.size, np.uint8))
    kernels.accumulate(acc, give(kernels, x), give(kernels, mask), divisor, 1.0, active)
    return host(acc)


def test_12_dare_with_given_uniform_numbers(kernels):
    data, metadata = golden("12_random_given_uniform")
    x, u, density = data["x"], data["u"], float(metadata["density"])
    keep = (u < density).astype(np.uint8)
    assert_equal(accumulate(kernels, x, keep, 1.0), data["mk_dare_d0.3_norescale"])
    keep = (u >= 0.7).astype(np.uint8)
    assert_equal(accumulate(kernels, x, keep, 1 - 0.7), data["off_dare_p0.7_rescale"])


def test_12_della_keeps_by_rank_and_divides_by_the_probability(kernels):
    data, metadata = golden("12_random_given_uniform")
    x, density, epsilon = data["x"], float(metadata["density"]), float(metadata["epsilon"])
    assert_equal(data["x"] * (data["u"] < data["mk_della_probs"]), data["mk_della_d0.3_e0.15"])
    seen = np.zeros(x.size, bool)
    for key in range(60):  # every key keeps other elements, and shows their probabilities by what it divides
        mask, divided = kernels.empty(x.size, "u8"), give(kernels, np.ones(x.size, np.float32))
        arguments = x.shape[-1], key, 0, 0, density - epsilon, 2 * epsilon, mask, divided
        kernels.mask_ranked(give(kernels, x), *arguments)
        kept = host(mask) != 0
        expected = np.where(kept, np.float32(1) / data["mk_della_probs"].ravel(), np.float32(1))
        assert_equal(host(divided), expected)
        seen |= kept
    assert seen.all()


SPECIFIED = ["20_spec_k3_no_overlap", "21_spec_k3_overlap", "25_spec_zeros_no_overlap", "27_spec_zeros_overlap"]


@pytest.mark.parametrize("name", SPECIFIED)
def test_20_21_25_27_three_models_to_the_merged_tensor(kernels, name):
    data, metadata = golden(name)
    ns, weights, m = ast.literal_eval(metadata["ns"]), ast.literal_eval(metadata["lam"]), int(metadata["m"])
    ts = [data[f"tau{i}"] for i in range(3)]
    masks, claims = select(kernels, ts, ns, m)
    for i, mask in enumerate(masks):
        assert_equal(mask, data[f"mask{i}"])
    assert_equal(claims, data["claim_count"])

    size = ts[0].size
    total, agreeing, weight_sum = (give(kernels, np.zeros(size, np.float32)) for _ in range(3))
    active, count = (give(kernels, np.zeros(size, np.uint8)) for _ in range(2))
    for t, mask, weight in zip(ts, masks, weights, strict=True):
        kernels.accumulate(total, give(kernels, t), give(kernels, mask), 1.0, weight, active)
    for t, mask, weight in zip(ts, masks, weights, strict=True):
        arguments = give(kernels, t), give(kernels, mask), 1.0, weight
        kernels.accumulate_agreeing(agreeing, weight_sum, count, total, *arguments)
    kernels.divide(agreeing, count)
    base = give(kernels, data["base"])
    raw = give(kernels, data["base"].view(np.uint8))
    for acc, expected in ((total, data["merged_sum"]), (agreeing, data["merged_ties"])):
        out = kernels.empty(4 * size, "u8")
        assert kernels.finish(raw, "F32", base, acc, active, "F32", False, out) == 0
        assert_equal(host(out).view(np.float32), expected)


def quantile(kernels, t, q):
    """The value at 0-based ascending rank floor(q * (N - 1)), by two histograms."""
    wanted, prefix = t.size - int(np.floor(q * (t.size - 1))), 0
    for shift, bits in ((15, 16), (0, 15)):
        counts = give(kernels, np.zeros(1 << bits, np.int64))
        kernels.histogram(give(kernels, t), None, 0, shift, bits, prefix, counts)
        from_top = np.cumsum(host(counts)[::-1])
        place = int(np.searchsorted(from_top, wanted))
        wanted -= int(from_top[place - 1]) if place else 0
        prefix = (prefix << bits) | ((1 << bits) - 1 - place)
    return float(np.uint32(prefix).view(np.float32))


def test_24_redundancy_of_task_vectors(kernels):
    data, _ = golden("24_spec_adaptive_density")
    for i in range(4):
        t = data[f"t{i}"]
        rows = kernels.empty(3 * -(-t.size // 4096), "f64").reshape(-1, 3)
        kernels.moments(give(kernels, t), rows)
        total, squares, _ = fold_rows(host(rows))
        if i == 3:
            assert total == 0
            continue
        assert total * total / (t.size * squares) == pytest.approx(data["u_l1l2"][i], rel=1e-14)
        assert quantile(kernels, t, 0.5) / quantile(kernels, t, 0.99) == pytest.approx(data["u_quantile"][i], rel=1e-14)
