"""Models: a checkpoint at a URL as the merge sees it, from headers alone.

Held by tests/unit/models, tests/property/models, tests/e2e/test_odd_checkpoints.py and tests/e2e/test_vocabularies.py.
"""

from __future__ import annotations

from .activations import Activations, open_activations
from .architectures import Architecture
from .buffers import buffer_kind
from .checkpoint import (
    FIRST_READ_BYTES,
    INDEX_NAME,
    MAX_INDEX_BYTES,
    Checkpoint,
    open_checkpoint,
    open_source,
    read_file_header,
)
from .config_json import json_object, patch_config, read_config
from .derived import HELD_BYTES
from .experts import with_experts_as, with_experts_like
from .header import DTYPES, Header, TensorInfo, build_header, check_file_name, header_length, parse_header, parse_index
from .layers import (
    Config,
    Layers,
    check_layers,
    config_edits,
    declared_layers,
    find_layers,
    is_number,
    layer_rules,
)
from .licences import CARD_NAME, common_licence, licence_of
from .location import Bytes, TensorLocation
from .names import with_mapped_names, with_names_of
from .opening import Opened, open_models
from .quantised import foreign_format, stays_quantised, unscaled
from .references import HUB_FOLDER, ModelUrl, public_id, resolve_file_url, resolve_model
from .room import BYTES_PER_TENSOR, Room
from .row_gather import RowGather
from .side_files import output_file_names
from .task_masks import BIT_ORDER, PART_FORMAT, PART_NAME, PART_VERSION, base_files, is_part, parts_below
from .tied_embeddings import (
    TIE_KEY,
    is_tied,
    names_embedding,
    names_head,
    tied_groups,
    tied_to,
    with_the_names_of,
    with_ties_apart,
)
from .tokens.decide import Folders, Source, plan_tokenizer, tokenizer_url
from .tokens.files import VocabularyFiles
from .tokens.tokenizer_json import TOKENIZER_NAME

__all__ = [
    "BIT_ORDER",
    "BYTES_PER_TENSOR",
    "CARD_NAME",
    "DTYPES",
    "FIRST_READ_BYTES",
    "HELD_BYTES",
    "HUB_FOLDER",
    "INDEX_NAME",
    "MAX_INDEX_BYTES",
    "PART_FORMAT",
    "PART_NAME",
    "PART_VERSION",
    "TIE_KEY",
    "TOKENIZER_NAME",
    "Activations",
    "Architecture",
    "Bytes",
    "Checkpoint",
    "Config",
    "Folders",
    "Header",
    "Layers",
    "ModelUrl",
    "Opened",
    "Room",
    "RowGather",
    "Source",
    "TensorInfo",
    "TensorLocation",
    "VocabularyFiles",
    "base_files",
    "buffer_kind",
    "build_header",
    "check_file_name",
    "check_layers",
    "common_licence",
    "config_edits",
    "declared_layers",
    "find_layers",
    "foreign_format",
    "header_length",
    "is_number",
    "is_part",
    "is_tied",
    "json_object",
    "layer_rules",
    "licence_of",
    "names_embedding",
    "names_head",
    "open_activations",
    "open_checkpoint",
    "open_models",
    "open_source",
    "output_file_names",
    "parse_header",
    "parse_index",
    "parts_below",
    "patch_config",
    "plan_tokenizer",
    "public_id",
    "read_config",
    "read_file_header",
    "resolve_file_url",
    "resolve_model",
    "stays_quantised",
    "tied_groups",
    "tied_to",
    "tokenizer_url",
    "unscaled",
    "with_experts_as",
    "with_experts_like",
    "with_mapped_names",
    "with_names_of",
    "with_the_names_of",
    "with_ties_apart",
]
