"""Reads the tokenizers of the inputs and decides what the output's vocabulary, embeddings and chat template are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from ...errors import InputError
from ...json_text import canonical_json
from ...recipe import CHAT_TEMPLATES, Recipe, TokenizerKeys
from ...storage import Store
from ..checkpoint import Checkpoint, side_file_names
from ..location import TensorLocation
from ..references import ModelUrl
from ..room import Room
from .chat_template import CONFIG_NAME, TEMPLATE_NAME, most_common_template, template_of
from .declared import DECLARING, with_declared
from .embeddings import align_tensor, find_embeddings
from .files import CONFIGS, VocabularyFiles
from .tokenizer_json import MAX_TOKENIZER_BYTES, TOKENIZER_NAME, Tokenizer, TokenizerEdit, read_tokenizer
from .vocabulary import Alignment, SourceTokens, TokenRow, TokenRule, Vocabulary, align, join

_SLOW_TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece*.model", "vocab.*", "*.tiktoken", "tokenizer.*")


@dataclass(frozen=True)
class TokenizerPlan:
    """What becomes of vocabularies and chat templates."""

    checkpoints: tuple[Checkpoint, ...]
    """As given, with embeddings in the order of the output's vocabulary."""
    files: VocabularyFiles
    """What changes in the files beside the weights."""
    warnings: tuple[str, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What of it decides output bytes, for the plan id; empty when nothing changes."""


@dataclass(frozen=True)
class Source:
    """The reference, or a model."""

    url: ModelUrl
    """Equal for the same model."""
    store: Store
    """Where its weights are read from."""
    checkpoint: Checkpoint
    tokenizer: Store
    """The folder of its tokenizer."""


class Folders:
    """Names and tokenizers of models' folders, each looked at once.

    Args:
        room: memory for what is read; None: it takes what it needs.
    """

    def __init__(self, room: Room | None = None) -> None:
        self._room = room or Room()
        self._names: dict[str, tuple[str, ...]] = {}
        self._tokenizers: dict[str, Tokenizer] = {}

    def names(self, store: Store) -> tuple[str, ...]:
        """Side files of a folder, which may hold no weights."""
        if store.url not in self._names:
            self._names[store.url] = side_file_names(store)
        return self._names[store.url]

    def read(self, store: Store, wanted: Sequence[str]) -> dict[str, bytes]:
        """Those of the wanted files that are there."""
        return {name: self._read(store, name) for name in wanted if name in self.names(store)}

    def _read(self, store: Store, name: str) -> bytes:
        if name != TOKENIZER_NAME:
            return self._room.read(store, name, MAX_TOKENIZER_BYTES)
        self._room.check_size(store.info(name).size, f"{store.url}/{name}")
        return store.read_bytes(name, MAX_TOKENIZER_BYTES)

    def tokenizer(self, store: Store) -> Tokenizer | None:
        """The tokenizer of a folder; None when there is no trace of one.

        Raises:
            InputError: it has no tokenizer.json but other files of a tokenizer, or a damaged one.
        """
        names = self.names(store)
        if TOKENIZER_NAME in names:
            data = self.read(store, [TOKENIZER_NAME])[TOKENIZER_NAME]
            digest = hashlib.sha256(data).hexdigest()  # most fine-tuned models share their base's
            if digest not in self._tokenizers:
                self._room.keep_tokenizer(data, f"{store.url}/{TOKENIZER_NAME}")
                self._tokenizers[digest] = read_tokenizer(data, f"{store.url}/{TOKENIZER_NAME}")
            return with_declared(self._tokenizers[digest], self.read(store, DECLARING), store.url)
        slow = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _SLOW_TOKENIZERS)]
        if slow:
            raise InputError(
                f"{store.url}: no {TOKENIZER_NAME}, only files of a slow tokenizer ({', '.join(slow[:3])})",
                "Convert it: load the folder with transformers.AutoTokenizer and call save_pretrained; or leave "
                "`tokenizer_source` and `tokenizer` out of the recipe.",
            )
        return None


@dataclass(frozen=True)
class _Request:
    """Everything that the decisions below look at."""

    keys: TokenizerKeys
    sources: Sequence[Source]
    numbers: Mapping[str, int]
    """Per model reference of the recipe its first source."""
    base: int | None
    """The source that is the base."""
    writer: Store
    """Whose tokenizer is written."""
    folders: Folders
    warnings: list[str]


def tokenizer_url(keys: TokenizerKeys | None, urls: Mapping[str, ModelUrl], reference: ModelUrl) -> ModelUrl:
    """The folder whose tokenizer files are written."""
    return reference if keys is None or keys.source in ("base", "union") else urls[keys.source]


def plan_tokenizer(
    recipe: Recipe, sources: Sequence[Source], urls: Mapping[str, ModelUrl], writer: Store, folders: Folders
) -> TokenizerPlan:
    """Decide vocabulary, embeddings and chat template of the output.

    Args:
        recipe: the recipe.
        sources: the reference, then every model.
        urls: URL of every model reference of the recipe.
        writer: the folder whose tokenizer files are written.
        folders: what was read of small files.

    Raises:
        InputError: a tokenizer is missing, damaged or slow; embeddings are unclear or do not fit each other.
    """
    warnings: list[str] = []
    template = _template(recipe.chat_template, writer, sources, folders, warnings)
    checkpoints = tuple(source.checkpoint for source in sources)
    keys = recipe.tokenizer_keys
    if keys is None:
        files = VocabularyFiles(None, TokenizerEdit(), (), {}, template)
        return TokenizerPlan(checkpoints, files, tuple(warnings), _identity(files, []))
    places = [source.url for source in sources]
    numbers = {reference: places.index(url) for reference, url in urls.items() if url in places}
    base = 0 if recipe.base_model is not None else None
    request = _Request(keys, sources, numbers, base, writer, folders, warnings)
    names = find_embeddings(checkpoints[0].tensors, keys.embeddings, checkpoints[0].url)
    tokenizers = [_tokenizer(request, source) for source in sources]
    vocabulary = _vocabulary(request, names, tokenizers)
    aligned, alignments = _align(request, names, vocabulary, tokenizers)
    written = vocabulary.tokenizer
    rows = vocabulary.rows + vocabulary.padding
    files = VocabularyFiles(rows, vocabulary.edit, written.numbered(), _moved(tokenizers[0], written), template)
    lost = files.lost(folders.read(sources[0].store, CONFIGS), checkpoints[0].url)
    if lost:
        warnings.append(f"the output lacks tokens that the reference's files name: {', '.join(lost)}; set to null")
    return TokenizerPlan(aligned, files, tuple(warnings), _identity(files, alignments))


def _moved(reference: Tokenizer, written: Tokenizer) -> dict[int, int | None]:
    """Ids of the reference whose tokens have another one in the output, or none."""
    new = ((old, written.id_of(token)) for token, old in reference.tokens())
    return {old: None if now < 0 else now for old, now in new if now != old}


def _identity(files: VocabularyFiles, alignments: Sequence[Alignment]) -> dict[str, Any]:
    if files.rows is None and not files.template:
        return {}
    edit = {"dropped": sorted(files.edit.dropped), "appended": [asdict(token) for token in files.edit.appended]}
    return {
        "rows": files.rows,
        "edit": hashlib.sha256(canonical_json(edit)).hexdigest(),
        "embeddings": [alignment.digest() for alignment in alignments],
        "chat_template": hashlib.sha256(files.template.encode()).hexdigest() if files.template else None,
    }


def _template(
    wanted: str | None, writer: Store, sources: Sequence[Source], folders: Folders, warnings: list[str]
) -> str:
    """The text of the chat template; empty: whatever the tokenizer's files say."""
    if wanted is None:
        return ""
    if not {TOKENIZER_NAME, CONFIG_NAME} & set(folders.names(writer)):
        raise InputError(
            f"{writer.url}: no tokenizer that could hold the chat template", "remove `chat_template` from the recipe"
        )
    if wanted != "auto":
        return CHAT_TEMPLATES.get(wanted, wanted)
    stores = {source.tokenizer.url: source.tokenizer for source in sources}.values()
    found = [template_of(folders.read(store, [CONFIG_NAME, TEMPLATE_NAME])) for store in stores]
    if not any(found):
        warnings.append("chat_template: auto finds no chat template in any model; none is written")
    return most_common_template(found)


def _tokenizer(request: _Request, source: Source) -> Tokenizer:
    """A model's tokenizer; the reference's where it has none."""
    found = request.folders.tokenizer(source.tokenizer)
    if found is None:
        reference = request.sources[0].tokenizer
        found = _required_tokenizer(request.folders, reference)
        text = f"{source.tokenizer.url} has no tokenizer; its tokens count as those of {reference.url}"
        if text not in request.warnings:
            request.warnings.append(text)
    return found


def _required_tokenizer(folders: Folders, store: Store) -> Tokenizer:
    found = folders.tokenizer(store)
    if found is None:
        raise InputError(
            f"{store.url}: no {TOKENIZER_NAME}; tokens cannot be matched without it",
            "add it, or leave `tokenizer_source` and `tokenizer` out of the recipe",
        )
    return found


def _vocabulary(request: _Request, names: Sequence[str], tokenizers: Sequence[Tokenizer]) -> Vocabulary:
    keys = request.keys
    rows: dict[str, tuple[Tokenizer, int]] = {}
    for source, tokenizer in zip(request.sources, tokenizers, strict=True):
        tensors = source.checkpoint.tensors
        height = max((tensors[n].info.shape[0] for n in names if n in tensors), default=0)
        rows[source.tokenizer.url] = tokenizer, max(height, rows.get(source.tokenizer.url, (tokenizer, 0))[1])
    own = _required_tokenizer(request.folders, request.writer)
    own_rows = rows[request.writer.url][1] if request.writer.url in rows else None
    others = [pair for url, pair in rows.items() if url != request.writer.url] if keys.source == "union" else []
    vocabulary = join(own, own_rows, others, list(keys.tokens), keys.pad_to_multiple_of or 1)
    if vocabulary.unknown:
        shown = ", ".join(repr(token) for token in vocabulary.unknown[:5])
        request.warnings.append(f"tokens that no tokenizer has are added ({len(vocabulary.unknown)}): {shown}")
    return vocabulary


def _align(
    request: _Request, names: Sequence[str], vocabulary: Vocabulary, tokenizers: Sequence[Tokenizer]
) -> tuple[tuple[Checkpoint, ...], list[Alignment]]:
    """The checkpoints with aligned embeddings, and one alignment per embedding."""
    sources = request.sources
    places = [source.url for source in sources]
    twins = [places.index(url) for url in places]
    urls = [source.checkpoint.url for source in sources]
    rules = {token: _rule(request, token) for token in request.keys.tokens}
    tensors = [dict(source.checkpoint.tensors) for source in sources]
    made: dict[tuple[int | None, ...], Alignment] = {}
    alignments = []
    for name in names:
        found = [source.checkpoint.tensors.get(name) for source in sources]
        heights = tuple(_height(location) for location in found)
        if heights not in made:
            inputs = [
                SourceTokens(known, height, twin) if height is not None else None
                for known, height, twin in zip(tokenizers, heights, twins, strict=True)
            ]
            made[heights] = align(vocabulary, inputs, request.base, rules, name)
        alignments.append(made[heights])
        for own, location in zip(tensors, align_tensor(found, urls, made[heights], name), strict=True):
            if location is not None:
                own[name] = location
    pairs = zip(sources, tensors, strict=True)
    return tuple(replace(source.checkpoint, tensors=own) for source, own in pairs), alignments


def _height(location: TensorLocation | None) -> int | None:
    return location.info.shape[0] if location is not None and location.info.shape else None


def _rule(request: _Request, token: str) -> TokenRule:
    entry = request.keys.tokens[token]
    if entry.source is None:
        return TokenRule(None, entry.force)
    model = None if entry.source.model is None else request.numbers[entry.source.model]
    return TokenRule(TokenRow(model, entry.source.token, entry.source.token_id), entry.force)
