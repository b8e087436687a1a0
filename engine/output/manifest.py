"""The manifest, and the names of what is written beside the shards."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import Field, ValidationError

from ..errors import IntegrityError
from ..json_text import readable_json
from ..plan import Record

FORMAT = "anabranch.manifest"
FORMAT_VERSION = 2
PLAN_NAME = ".anabranch/plan.json"
TASKS_NAME = ".anabranch/tasks.parquet"
INPUTS_NAME = ".anabranch/inputs.json"
RECEIPTS_FOLDER = ".anabranch/receipts"
SURVEY_FOLDER = ".anabranch/survey"
MANIFEST_NAME = "anabranch.manifest.json"
TENSORS_NAME = "anabranch.tensors.parquet"
SURVEY_NAME = "anabranch.survey.parquet"
INPUT_RANGES_NAME = "anabranch.inputs.parquet"
PLAN_ATTRIBUTE = "anabranch_plan"
"""Where an object store keeps the plan id of a shard."""


class FileEntry(Record):
    """What a file must be."""

    size: int
    sha256: str


class ReadFile(Record):
    """What the merge read of one weight file of its inputs."""

    url: str
    header_sha256: str
    bytes: int
    """That were read, each counted once."""
    ranges: int
    """Rows of the table of input ranges."""
    sha256: str
    """Over a line per row: begin, end, block and digest, separated by spaces."""


class Manifest(Record):
    """The commit: written last, by exclusive creation."""

    format: Literal["anabranch.manifest"] = "anabranch.manifest"
    version: int = FORMAT_VERSION
    plan_id: str
    numerics: int
    recipe: dict[str, Any]
    inputs: list[dict[str, Any]]
    files: dict[str, FileEntry]
    """Every file of the output except this one and the plan's working files, by name."""
    merged_tensors: int
    copied_tensors: int
    parameters: int
    """Elements of all tensors."""
    summary: list[dict[str, Any]]
    """Per model: fraction kept, and overlap with every other model."""
    notes: list[str] = Field(default_factory=list)
    """How inputs were read, and what slices left of them."""
    warnings: list[str]
    """What may not be as it was meant."""
    read: list[ReadFile] = Field(default_factory=list)
    """Weight files that were read, by place in the inputs; a table of its own has every range."""
    tables: dict[str, str]
    """SHA-256 over the rows of each Parquet table; the bytes of Parquet files depend on the library's version."""
    survey: list[dict[str, Any]]
    """What a survey decided of each whole model; what it decided of each tensor is a table of its own."""


def encode_manifest(manifest: Manifest) -> bytes:
    """As JSON that people can read."""
    return readable_json(manifest.model_dump(mode="json"))


def manifest_sha256(manifest: Manifest) -> str:
    """The digest of the file that holds it: whoever knows it need not trust the directory."""
    return hashlib.sha256(encode_manifest(manifest)).hexdigest()


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Raises IntegrityError when the bytes are not a manifest."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(
            f"{where} is not a manifest: {error.errors()[0]['msg']}",
            "it is damaged: remove it and run the merge again, which looks at what is there and makes what is gone",
        ) from None
