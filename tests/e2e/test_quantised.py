"""The whole command on quantised checkpoints: block-scaled FP8 is merged, everything else is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ..merging import load_output, write_checkpoint, write_recipe
from .conftest import CONFIG, Command, llama_shapes

BLOCK = (16, 8)
QUANTIZATION = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK)}
Tensors = dict[str, torch.Tensor]


def quantise(tensor: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FP8 codes, the scale of every block, and the fp32 values that they stand for."""
    rows, columns = (math.ceil(size / step) for size, step in zip(tensor.shape, block, strict=True))
    scales = torch.empty(rows, columns)
    codes = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
    values = torch.empty(tensor.shape)
    for i in range(rows):
        for j in range(columns):
            part = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scales[i, j] = tensor[part].abs().max() / 448
            codes[part] = (tensor[part] / scales[i, j]).to(torch.float8_e4m3fn)
            values[part] = codes[part].float() * scales[i, j]
    return codes, scales, values


class Models:
    """A base and a fine-tune as DeepSeek-V3 ships weights, and the fp32 values of both."""

    def __init__(self, folder: Path, block: tuple[int, int] = BLOCK) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(3)
        self.stored: dict[str, Tensors] = {}
        self.values: dict[str, Tensors] = {}
        start = {n: torch.randn(shape, generator=generator) * 0.05 for n, shape in llama_shapes().items()}
        for model in ("base", "tuned"):
            self.stored[model], self.values[model] = {}, {}
            for name, tensor in start.items():
                moved = tensor + torch.randn(tensor.shape, generator=generator) * 0.01 * (model == "tuned")
                if "_proj" in name:
                    codes, scales, values = quantise(moved, block)
                    self.stored[model] |= {name: codes, f"{name}_scale_inv": scales}
                else:
                    values = moved.bfloat16()
                    self.stored[model][name] = values
                self.values[model][name] = values

    def write(self, quantization: dict[str, Any] | None = None, **config: Any) -> None:
        for model, tensors in self.stored.items():
            write_checkpoint(self.folder / model, tensors, 2, {**CONFIG, **config, "quantization_config": quantization})

    def recipe(self, **keys: Any) -> Path:
        content = {
            "merge_method": "task_arithmetic",
            "base_model": str(self.folder / "base"),
            "models": [{"model": str(self.folder / "tuned"), "parameters": {"weight": 0.5}}],
        }
        return write_recipe(self.folder / "recipe.yml", content | keys)

    def merged(self, dtype: torch.dtype) -> Tensors:
        base, tuned = ({n: t.float() for n, t in self.values[model].items()} for model in ("base", "tuned"))
        return {name: (base[name] + (tuned[name] - base[name]) * 0.5).to(dtype) for name in base}


def test_block_scales_are_applied_while_reading(anabranch: Command, tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.write(QUANTIZATION)
    result = anabranch("merge", models.recipe(), tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "14 FP8 tensors are multiplied by their scales" in result.output
    found, expected = load_output(tmp_path / "out"), models.merged(torch.bfloat16)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == CONFIG
    result = anabranch("verify", tmp_path / "out", "--load")
    assert result.exit_code == 0, result.output


def test_the_output_dtype_may_be_given(anabranch: Command, tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.write(QUANTIZATION)
    result = anabranch("merge", models.recipe(out_dtype="float32"), tmp_path / "out")
    assert result.exit_code == 0, result.output
    found, expected = load_output(tmp_path / "out"), models.merged(torch.float32)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == CONFIG | {"torch_dtype": "float32"}


def test_blocks_of_128_are_the_default(anabranch: Command, tmp_path: Path) -> None:
    models = Models(tmp_path, (128, 128))
    models.write(torch_dtype="float16")
    result = anabranch("merge", models.recipe(), tmp_path / "out")
    assert result.exit_code == 0, result.output
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(load_output(tmp_path / "out")[name], models.merged(torch.float16)[name])


def test_a_plain_base_and_a_quantised_fine_tune(anabranch: Command, tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.write(QUANTIZATION)
    models.values["base"] = {name: tensor.bfloat16() for name, tensor in models.values["base"].items()}
    write_checkpoint(tmp_path / "base2", models.values["base"], 1, CONFIG)
    result = anabranch("merge", models.recipe(base_model=str(tmp_path / "base2")), tmp_path / "out")
    assert result.exit_code == 0, result.output
    found, expected = load_output(tmp_path / "out"), models.merged(torch.bfloat16)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "quantization", "said"),
    [
        ({}, QUANTIZATION | {"weight_block_size": [32, 8]}, "blocks of 32 x 8 need [1, 6]"),
        ({}, QUANTIZATION | {"weight_block_size": [0, 8]}, "weight_block_size is [0, 8]"),
        ({"x.weight_scale_inv": torch.ones(1, 1)}, QUANTIZATION, "has no weight 'x.weight' beside it"),
        ({"model.norm.weight_scale_inv": torch.ones(2)}, QUANTIZATION, "has scales and is BF16"),
        (
            {"e.w": torch.ones(2, 20, 4).to(torch.float8_e4m3fn), "e.w_scale_inv": torch.ones(2, 2, 1)},
            QUANTIZATION,
            "blocks of 16 rows cross from one matrix to the next",
        ),
        (
            {"e.w": torch.ones(20).to(torch.float8_e4m3fn), "e.w_scale_inv": torch.ones(2)},
            QUANTIZATION,
            "only matrices are supported",
        ),
        (
            {"e.w": torch.ones(20, 4).to(torch.float8_e4m3fn), "e.w_scale": torch.ones(3, 1)},
            QUANTIZATION,
            "expected one scale, one for each row, or one for each group of columns",
        ),
        (
            {"e.w": torch.ones(20, 4).to(torch.float8_e4m3fn), "e.w_scale": torch.ones(20).double()},
            QUANTIZATION,
            "has scales of dtype F64",
        ),
    ],
)
def test_scales_that_do_not_fit(
    changes: Tensors, quantization: dict[str, Any], said: str, anabranch: Command, tmp_path: Path
) -> None:
    models = Models(tmp_path)
    models.stored["base"] |= changes
    models.write(quantization)
    result = anabranch("merge", models.recipe(), tmp_path / "out")
    assert result.exit_code == 3
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [(), (1,), (32,), (32, 1), (32, 4), (1, 1)])
def test_a_scale_for_all_for_each_row_or_for_each_group(
    cut: tuple[int, ...], anabranch: Command, tmp_path: Path
) -> None:
    """As compressed-tensors, FBGEMM and ModelOpt store FP8, scales of activations included."""
    generator = torch.Generator().manual_seed(2)
    values, layer = [], "model.layers.0.mlp.down_proj"
    for model in ("base", "tuned"):
        codes = torch.randn(32, 48, generator=generator).to(torch.float8_e4m3fn)
        scale = torch.rand(cut, generator=generator).bfloat16()
        stored = {f"{layer}.weight": codes, f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.ones(1)}
        write_checkpoint(tmp_path / model, stored, 1, {"torch_dtype": "bfloat16", "quantization_config": {"x": 1}})
        groups = scale.float().reshape(scale.shape[0] if scale.dim() else 1, -1)
        spread = groups.repeat_interleave(32 // groups.shape[0], 0).repeat_interleave(48 // groups.shape[1], 1)
        values.append(codes.float() * spread)
    models = [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 0.5}}]
    content = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": models}
    result = anabranch("merge", write_recipe(tmp_path / "r.yml", content), tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "2 tensors of scales, and quantization_config, are not part of an output" in result.output
    expected = (values[0] + (values[1] - values[0]) * 0.5).bfloat16()
    found = load_output(tmp_path / "out")
    assert found.keys() == {f"{layer}.weight"}
    assert torch.equal(found[f"{layer}.weight"], expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"torch_dtype": "bfloat16"}


def test_stacked_experts_with_block_scales(anabranch: Command, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randn(3, 32, 20, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, 3, generator=generator)
    stored = {"experts.down_proj": codes, "experts.down_proj_scale_inv": scales}
    config = {"torch_dtype": "float32", "quantization_config": QUANTIZATION}
    write_checkpoint(tmp_path / "model", stored, 1, config)
    content = {"merge_method": "linear", "models": [{"model": str(tmp_path / "model")}]}
    result = anabranch("merge", write_recipe(tmp_path / "r.yml", content), tmp_path / "out")
    assert result.exit_code == 0, result.output
    spread = scales.repeat_interleave(16, 1).repeat_interleave(8, 2)[:, :, :20]
    assert torch.equal(load_output(tmp_path / "out")["experts.down_proj"], codes.float() * spread)


POWERS = [2.0**-127, 2.0**-60, 2.0**-6, 1.0, 2.0**7, 2.0**100]


def merged_fp32(folder: Path, anabranch: Command, stored: Tensors, **config: Any) -> Tensors:
    """One model through an average of one, as fp32."""
    write_checkpoint(folder / "model", stored, 1, {"torch_dtype": "bfloat16", **config})
    content = {"merge_method": "linear", "models": [{"model": str(folder / "model")}], "dtype": "float32"}
    result = anabranch("merge", write_recipe(folder / "r.yml", content), folder / "out")
    assert result.exit_code == 0, result.output
    return load_output(folder / "out")


@pytest.mark.parametrize("suffix", [".weight_scale_inv", ".scale", ".weight_scale"])
def test_scales_that_are_powers_of_two_are_exact(suffix: str, anabranch: Command, tmp_path: Path) -> None:
    """DeepSeek's F8_E8M0: the code is an exponent, the smallest one subnormal in fp32."""
    codes = torch.randn(48, 16, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    scales = torch.tensor(POWERS).reshape(3, 2)
    stored = {"a.q.weight": codes, f"a.q{suffix}": scales.to(torch.float8_e8m0fnu)}
    found = merged_fp32(tmp_path, anabranch, stored, quantization_config=QUANTIZATION)
    assert found.keys() == {"a.q.weight"}
    spread = scales.repeat_interleave(16, 0).repeat_interleave(8, 1)
    assert torch.equal(found["a.q.weight"].double(), codes.double() * spread.double())


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.uint8])
def test_scales_of_mx_formats(dtype: torch.dtype, anabranch: Command, tmp_path: Path) -> None:
    codes = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    exponents = torch.arange(120, 132, dtype=torch.uint8).reshape(6, 2)
    scales = exponents if dtype == torch.uint8 else exponents.view(dtype)
    found = merged_fp32(tmp_path, anabranch, {"q.weight": codes, "q.weight_scale": scales})
    spread = torch.exp2(exponents.float() - 127).repeat_interleave(32, 1)
    assert torch.equal(found["q.weight"], codes.float() * spread)


def test_a_scale_that_is_no_number_stops_the_merge(anabranch: Command, tmp_path: Path) -> None:
    codes = torch.ones(4, 32).to(torch.float8_e4m3fn)
    stored = {"q.weight": codes, "q.weight_scale": torch.full((4, 1), 255, dtype=torch.uint8)}
    write_checkpoint(tmp_path / "model", stored, 1, {"torch_dtype": "bfloat16"})
    content = {"merge_method": "linear", "models": [{"model": str(tmp_path / "model")}]}
    result = anabranch("merge", write_recipe(tmp_path / "r.yml", content), tmp_path / "out")
    assert result.exit_code == 3
    assert "holds 128 NaN or Inf values" in result.stderr


def test_a_copy_must_be_finite_too(anabranch: Command, tmp_path: Path) -> None:
    stored = {"q.weight": torch.full((4, 4), 448.0).to(torch.float8_e4m3fn), "q.weight_scale": torch.tensor(3e38)}
    write_checkpoint(tmp_path / "model", stored, 1, {"torch_dtype": "bfloat16"})
    content = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "model")}]}
    result = anabranch("merge", write_recipe(tmp_path / "r.yml", content), tmp_path / "out")
    assert result.exit_code == 3
    assert "tensor 'q.weight' holds 16 NaN or Inf values as it is computed" in result.stderr
    assert not (tmp_path / "out" / "anabranch.manifest.json").exists()


@pytest.mark.parametrize(
    ("scale", "beside"),
    [
        ("q.scale_weight", {"q.scale_input": torch.ones(1), "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}),
        ("q.scale", {}),
        ("q._weight_scale", {}),
        ("q._scale", {}),
        ("q.weight._scale", {}),
        ("q.weight_scale", {"q.input_scale": torch.ones(1), "q.comfy_quant": torch.ones(9, dtype=torch.uint8)}),
        ("q.weight_scale_inv", {"q.activation_scale": torch.ones(())}),
        ("q.weight_scale", {"self_attn.k_scale": torch.ones(1), "self_attn.v_proj.output_scale": torch.ones(1)}),
    ],
)
def test_scales_under_other_names(scale: str, beside: Tensors, anabranch: Command, tmp_path: Path) -> None:
    """Two models whose FP8 numbers have different scales, on a base that has none and no such names."""
    generator, values = torch.Generator().manual_seed(2), []
    write_checkpoint(tmp_path / "base", {"q.weight": torch.zeros(32, 48).bfloat16()}, 1, {"torch_dtype": "bfloat16"})
    for i in range(2):
        codes = torch.randn(32, 48, generator=generator).to(torch.float8_e4m3fn)
        factor = torch.rand(1, generator=generator) + i * 10
        write_checkpoint(tmp_path / f"m{i}", {"q.weight": codes, scale: factor, **beside}, 1)
        values.append(codes.float() * factor)
    models = [{"model": str(tmp_path / f"m{i}"), "parameters": {"weight": 0.5}} for i in range(2)]
    content = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": models}
    result = anabranch("merge", write_recipe(tmp_path / "r.yml", content | {"out_dtype": "float32"}), tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = load_output(tmp_path / "out")
    assert found.keys() == {"q.weight"}
    assert torch.equal(found["q.weight"], values[0] * 0.5 + values[1] * 0.5)


def test_blocks_that_do_not_divide_the_weight_are_those_that_the_configuration_names(
    anabranch: Command, tmp_path: Path
) -> None:
    """compressed-tensors: 24 rows in blocks of 16 are 16 and 8, where an even cut would be 12 and 12."""
    codes = torch.randn(24, 16, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    groups = {"group_0": {"weights": {"strategy": "block", "block_structure": [16, 8]}}}
    quantization = {"quant_method": "compressed-tensors", "config_groups": groups}
    stored = {"q.weight": codes, "q.weight_scale": scales}
    found = merged_fp32(tmp_path, anabranch, stored, compression_config=quantization)
    spread = scales.repeat_interleave(16, 0)[:24].repeat_interleave(8, 1)
    assert torch.equal(found["q.weight"], codes.float() * spread)


@pytest.mark.parametrize("cut", [(3,), (3, 1, 1), (3, 20, 1), (3, 20, 2)])
def test_stacked_matrices_with_a_scale_each(cut: tuple[int, ...], anabranch: Command, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randn(3, 20, 8, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(cut, generator=generator)
    found = merged_fp32(tmp_path, anabranch, {"experts.up": codes, "experts.up_scale": scales})
    spread = scales.reshape(cut + (1,) * (3 - len(cut)))
    spread = spread.repeat_interleave(8 // spread.shape[2], 2) if spread.shape[2] > 1 else spread
    assert torch.equal(found["experts.up"], codes.float() * spread)


def eight_bit(rows: int = 4, columns: int = 6) -> torch.Tensor:
    return torch.ones(rows, columns).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"q.weight": eight_bit(), "q.weight_scales": torch.ones(1)}, "'q.weight_scales' looks like one: q.weight;"),
        ({"q.weight": eight_bit(), "q.weight_amax": torch.ones(1)}, "'q.weight_amax' looks like one"),
        ({"q.weight": eight_bit().to(torch.float8_e5m2), "q.dequant_scale": torch.ones(4)}, "looks like one"),
        (
            {"q.weight": eight_bit(), "q.weight_scale": torch.ones(1), "k.weight": eight_bit()},
            "1 matrices of 8-bit floats have no scales of a known name, and 'q.weight' has scales: k.weight",
        ),
        ({"q._weight_qdata": eight_bit(), "q._weight_scale": torch.ones(1)}, "quantised as torchao"),
        ({"q.weight._data": eight_bit(), "q.weight._scale": torch.ones(1)}, "quantised as quanto"),
        (
            {"q.weight": eight_bit(), "q.weight_scale": torch.ones(1), "q.scale": torch.ones(1)},
            "'q.weight' has several tensors of scales: q.weight_scale, q.scale",
        ),
        ({"q.weight": eight_bit(), "q.scale": torch.ones(3)}, "expected one scale, one for each row"),
        ({"q.weight": eight_bit(), "q_norm.scale": torch.ones(4), "logit_scale": torch.ones(())}, ""),
        ({"q.weight": eight_bit()}, ""),
    ],
)
def test_eight_bit_floats_without_known_scales_are_refused_by_name(
    stored: Tensors, said: str, anabranch: Command, tmp_path: Path
) -> None:
    """Beside what looks like scales; a plain cast to FP8 is merged."""
    for model in ("base", "tuned"):
        changed = stored | {"plain": torch.ones(3) + (model == "tuned")}
        write_checkpoint(tmp_path / model, changed, 1, {"torch_dtype": "bfloat16"})
    models = [{"model": str(tmp_path / "base")}, {"model": str(tmp_path / "tuned")}]
    recipe = write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": models})
    result = anabranch("merge", recipe, tmp_path / "out")
    assert result.exit_code == (3 if said else 0), result.output
    assert said in result.stderr


def test_what_says_that_weights_are_quantised_is_not_copied(anabranch: Command, tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.write(QUANTIZATION)
    (tmp_path / "base" / "hf_quant_config.json").write_text("{}")
    result = anabranch("merge", models.recipe(), tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "kind"),
    [
        ("model.layers.0.q.qweight", torch.zeros(2, 2, dtype=torch.int32), "GPTQ or AWQ"),
        ("model.layers.0.q.weight.absmax", torch.zeros(2, dtype=torch.uint8), "bitsandbytes"),
        ("model.layers.0.q.SCB", torch.zeros(2), "bitsandbytes"),
        ("model.layers.0.q.weight_packed", torch.zeros(2, 2, dtype=torch.int32), "compressed-tensors"),
        ("model.layers.0.q.weight_scale", torch.ones(1), "compressed-tensors"),
        ("model.layers.0.mlp.experts.down_proj_blocks", torch.zeros(2, 2, dtype=torch.uint8), "MXFP4"),
    ],
)
def test_other_quantisations_are_refused_by_name(
    name: str, tensor: torch.Tensor, kind: str, anabranch: Command, tmp_path: Path
) -> None:
    models = Models(tmp_path)
    for stored in models.stored.values():
        stored[name] = tensor
    models.write(QUANTIZATION)
    result = anabranch("merge", models.recipe(), tmp_path / "out")
    assert result.exit_code == 3
    assert f"quantised as {kind}" in result.stderr
    assert name in result.stderr
    assert not (tmp_path / "out").exists()
    result = anabranch("merge", models.recipe(exclude=[name]), tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_a_float_matrix_called_blocks_is_no_quantisation(anabranch: Command, tmp_path: Path) -> None:
    models = Models(tmp_path)
    for stored in models.stored.values():
        stored["position_scales"] = torch.ones(4)
    models.write(QUANTIZATION)
    result = anabranch("merge", models.recipe(), tmp_path / "out")
    assert result.exit_code == 0, result.output
