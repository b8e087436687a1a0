"""Config and tokenizer files of the output when its vocabulary or its chat template is not simply the source's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ..config_json import read_config
from .chat_template import CONFIG_NAME, TEMPLATE_NAME
from .declared import ADDED_NAME
from .tokenizer_json import TOKENIZER_NAME, AddedToken, TokenizerEdit, read_tokenizer, write_tokenizer

CONFIGS = ("config.json", "generation_config.json")
_SLOW_FILES = ("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "*.spm", "*.bpe")
"""Vocabularies of slow tokenizers, which have no place for a change inside the vocabulary."""
_ID_KEYS = ("_token_id", "_token_index")


@dataclass(frozen=True)
class VocabularyFiles:
    """What changes in the files beside the weights."""

    rows: int | None
    """The output's `vocab_size`; None: as it is."""
    edit: TokenizerEdit
    added: Sequence[tuple[int, AddedToken]] = field(repr=False)
    """The output's added tokens with their ids, by id."""
    new_ids: Mapping[int, int | None] = field(repr=False)
    """Ids of the reference whose tokens have another id in the output, or none."""
    template: str
    """The chat template; empty: as it is."""

    @property
    def edited(self) -> frozenset[str]:
        """Names of the files whose content `apply` reads or makes."""
        ids = CONFIGS if self.rows is not None else ()
        tokens = (TOKENIZER_NAME, CONFIG_NAME, ADDED_NAME) if self.edit else ()
        template = (TEMPLATE_NAME, CONFIG_NAME) if self.template else ()
        return frozenset((*ids, *tokens, *template))

    def apply(self, files: Mapping[str, bytes], where: str) -> dict[str, bytes]:
        """The output's files.

        Args:
            files: side files by name, as they are copied without a change; of those that are not `edited` only the
                name counts.
            where: the folder, for messages.

        Raises:
            InputError: a file that must change is not of its form.
        """
        result = dict(files)
        for name in CONFIGS:
            if name in result and name in self.edited:
                result[name] = self._config(result[name], f"{where}/{name}", sizes=name == "config.json")
        if self.edit:
            self._edit_tokens(result, where)
        if self.template:
            self._set_template(result, where)
        return result

    def lost(self, files: Mapping[str, bytes], where: str) -> list[str]:
        """Keys of the config files that name a token which the output does not have."""
        found = []
        for name in CONFIGS:
            if name in files:
                for part in _parts(read_config(files[name], f"{where}/{name}")):
                    found += [
                        f"{name}: {key}" for key in part if _is_id(key) and None in _moved(part[key], self.new_ids)
                    ]
        return found

    def _config(self, data: bytes, where: str, sizes: bool) -> bytes:
        config = read_config(data, where)
        before = json.dumps(config)
        for part in _parts(config):
            if sizes and self.rows is not None and "vocab_size" in part:
                part["vocab_size"] = self.rows
            for key in filter(_is_id, list(part)):
                moved = _moved(part[key], self.new_ids)
                if isinstance(part[key], list):
                    part[key] = [value for value in moved if value is not None]
                elif moved:
                    part[key] = moved[0]
        return data if json.dumps(config) == before else _json_bytes(config)

    def _edit_tokens(self, files: dict[str, bytes], where: str) -> None:
        place = f"{where}/{TOKENIZER_NAME}"
        vocabulary = read_tokenizer(files[TOKENIZER_NAME], place).vocabulary
        dropped = self.edit.dropped & vocabulary.keys()
        beyond = {token.content: i for i, token in self.added if token.content not in vocabulary}
        del vocabulary  # the largest thing here
        files[TOKENIZER_NAME] = write_tokenizer(files[TOKENIZER_NAME], place, self.added, dropped)
        if dropped:
            for name in [name for name in files if any(fnmatchcase(name, pattern) for pattern in _SLOW_FILES)]:
                del files[name]
        if CONFIG_NAME in files:
            config = read_config(files[CONFIG_NAME], f"{where}/{CONFIG_NAME}")
            if "added_tokens_decoder" in config:
                decoder = {str(i): token.flags() for i, token in self.added}
                files[CONFIG_NAME] = _json_bytes(config | {"added_tokens_decoder": decoder})
        if ADDED_NAME in files:
            files[ADDED_NAME] = _json_bytes(dict(sorted(beyond.items())))

    def _set_template(self, files: dict[str, bytes], where: str) -> None:
        """Both places that readers know: the file, which goes first, and the key, which older ones read."""
        files[TEMPLATE_NAME] = self.template.encode()
        if CONFIG_NAME in files:
            config = read_config(files[CONFIG_NAME], f"{where}/{CONFIG_NAME}")
            files[CONFIG_NAME] = _json_bytes(config | {"chat_template": self.template})


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config itself, and that of the language model inside a larger one."""
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]


def _is_id(key: str) -> bool:
    return key.endswith(_ID_KEYS)


def _moved(value: Any, new_ids: Mapping[int, int | None]) -> list[int | None]:
    """The new ids of a key that holds one or several; nothing when it holds none."""
    ids = value if isinstance(value, list) else [value]
    return [new_ids.get(i, i) for i in ids if isinstance(i, int) and not isinstance(i, bool)]


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
