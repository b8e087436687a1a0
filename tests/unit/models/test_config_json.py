"""config.json beside weights that its reference does not describe."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anabranch.engine.models.config_json import patch_config

QUANTISED = {"quant_method": "fp8", "dtype": "float8_e4m3fn"}


def patched(config: dict[str, Any], dtype: str | None = None, **keys: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(patch_config(json.dumps(config).encode(), dtype, "config.json", **keys))
    return found


def test_a_dtype_is_said_in_parts_too() -> None:
    config = {
        "dtype": None,
        "text_config": {"torch_dtype": "float32", "inner": {"dtype": "float32"}},
        "vision_config": {"dtype": None, "hidden_size": 3},
        "quantization_config": QUANTISED,
    }
    expected = {
        "dtype": "bfloat16",
        "text_config": {"torch_dtype": "bfloat16", "inner": {"dtype": "bfloat16"}},
        "vision_config": {"dtype": None, "hidden_size": 3},
        "quantization_config": QUANTISED,
    }
    assert patched(config, "BF16") == expected


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_what_describes_quantised_weights_goes_wherever_it_is(key: str) -> None:
    config = {"model_type": "x", key: QUANTISED, "text_config": {"a": 1, key: QUANTISED}}
    assert patched(config, unquantise=True) == {"model_type": "x", "text_config": {"a": 1}}
    assert patched(config) == config


def test_a_configuration_that_is_true_keeps_its_bytes() -> None:
    data = b'{ "dtype":"bfloat16",  "text_config": {"dtype": "bfloat16"} }'
    assert patch_config(data, "BF16", "config.json", unquantise=True) == data
    assert patch_config(b"not JSON", None, "config.json", unquantise=True) == b"not JSON"
