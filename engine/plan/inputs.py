"""From a recipe to opened checkpoints and a plan, and the side files that go with the weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import InputError, RecipeError, some_names
from ..models import (
    CARD_NAME,
    TOKENIZER_NAME,
    Activations,
    Checkpoint,
    Config,
    Folders,
    ModelUrl,
    Opened,
    Room,
    Source,
    VocabularyFiles,
    common_licence,
    is_tied,
    json_object,
    licence_of,
    open_activations,
    open_models,
    output_file_names,
    patch_config,
    plan_tokenizer,
    read_config,
    resolve_file_url,
    resolve_model,
    stays_quantised,
    tokenizer_url,
    with_experts_as,
    with_experts_like,
    with_mapped_names,
    with_names_of,
    with_the_names_of,
    with_ties_apart,
)
from ..recipe import Recipe, activations_of, donor_of, groups_of, names_of, references_of
from ..storage import FileInfo, Store, crosses_network
from .emr_outputs import cut_parts
from .make import make_plan
from .model_card import card_files
from .plan import Plan
from .side_files import SideFile

TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
)


@dataclass(frozen=True)
class Inputs:
    """Opened inputs of a merge."""

    plan: Plan
    stores: Sequence[Store]
    """One per source of the plan."""
    side: Sequence[SideFile]
    """Config and tokenizer files that go with the weights, by name."""
    vocabulary: VocabularyFiles
    """How they change with the vocabulary and the chat template."""
    card: Mapping[str, bytes]
    """Files that say how the output was made, by name."""

    @property
    def is_remote(self) -> bool:
        """Whether any input lies behind a network."""
        return any(crosses_network(store.url) for store in self.stores)

    def local_identity(self) -> dict[str, list[int]]:
        """What only this host knows of its input files, by URL: the inode, and when name or content changed last."""
        return {
            f"{store.url}/{file.name}": [file.inode, file.changed_ns]
            for source, store in zip(self.plan.sources, self.stores, strict=True)
            for file in source.files
            if file.inode is not None and file.changed_ns is not None
        }

    def check_unchanged(self) -> None:
        """Look at local input files again; those of stores are asked for in their version with every read.

        Raises:
            InputError: one of them is not the file that was opened, whatever its size and time.
        """
        for source, store in zip(self.plan.sources, self.stores, strict=True):
            for file in source.files:
                if file.inode is None:
                    continue
                try:
                    found: FileInfo | None = store.info(file.name)
                except FileNotFoundError:
                    found = None
                if found != FileInfo(file.size, file.version, file.inode, file.changed_ns):
                    raise InputError(
                        f"{store.url}/{file.name}: changed while it was merged, or was replaced by another file",
                        "when nothing writes there any more, run the same command again: it makes everything again "
                        "from the files that are there then",
                    )

    def side_files(self) -> dict[str, bytes | SideFile]:
        """config.json as the output needs it, the reference's other files, tokenizer files of their source, the card.

        Bytes where the output's are not simply those of a file; other files have any size and are read as they are
        written.

        Raises:
            InputError: config.json is not a JSON object, or a file whose content is needed changed since the plan was
                made.
        """
        edited = {"config.json", *self.vocabulary.edited}
        copied = {side.name: side for side in self.side if side.name not in edited}
        content = {side.name: b"" if side.name in copied else side.read() for side in self.side}
        if "config.json" in content:
            content["config.json"] = self._patched(content["config.json"], f"{self.plan.base.url}/config.json")
        made = self.vocabulary.apply(content, self.plan.base.url)
        return {**{name: copied.get(name, data) for name, data in made.items()}, **self.card}

    def check_side_files(self) -> None:
        """Read all files that go with the weights, so that none stops the run at its end; InputError as `side_files`.

        Files that change are changed as for the output.
        """
        for content in self.side_files().values():
            if isinstance(content, SideFile):
                content.check()

    def _patched(self, config: bytes, where: str) -> bytes:
        return patch_config(config, self._dtype, where, self._drops_quantization, self.plan.config_edits)

    @property
    def _dtype(self) -> str | None:
        """The dtype that the output's config.json has to name; None: the reference's own is right."""
        return self.plan.terms.out_dtype

    @property
    def _drops_quantization(self) -> bool:
        """Whether the output's weights are plain numbers, whatever the reference's configuration says."""
        return not stays_quantised(self.plan.base, self.plan.terms.out_dtype)


def _side_files(base: Store, tokenizer: Store, folders: Folders, quantised: bool) -> tuple[list[SideFile], list[str]]:
    """Files that go with the weights, and notes on what is not simply copied."""
    names, notes = output_file_names(base, folders.names(base), quantised)
    theirs, _ = output_file_names(tokenizer, folders.names(tokenizer), quantised)
    own = [SideFile(base, n, base.info(n)) for n in names if not _is_tokenizer_file(n)]
    others = [SideFile(tokenizer, n, tokenizer.info(n)) for n in theirs if _is_tokenizer_file(n)]
    return sorted([*own, *others], key=lambda side: side.name), notes


def _text(side: SideFile, room: Room) -> bytes:
    data = side.read()
    room.check_text(data, f"{side.store.url}/{side.name}")
    return data


def _is_tokenizer_file(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)


def open_inputs(recipe: Recipe, recipe_dir: Path, opened: Opened | None = None) -> Inputs:
    """Open every checkpoint that a recipe names and make the plan; reads headers only.

    Args:
        recipe: the recipe.
        recipe_dir: where relative model paths of the recipe start, unless they exist below the working directory.
        opened: models that other recipes have opened already; gets those of this one, too.

    Raises:
        RecipeError: a model does not exist.
        InputError: a checkpoint is damaged, or the checkpoints do not fit each other.
    """
    merged = {r: resolve_model(r, recipe_dir) for r in references_of(recipe)}
    keys = recipe.tokenizer_keys
    urls = merged | {r: resolve_model(r, recipe_dir) for r in (keys.references() if keys is not None else ())}
    opened = opened or Opened()
    found = open_models(merged.values(), opened)
    recipe = _without_base(recipe, urls, opened)
    reference = urls[donor_of(recipe)]
    if not recipe.slices:  # which may take few of a model's layers
        checkpoint = found[reference][0]
        opened.room.check_plan(len(checkpoint.tensors), 1 + len(recipe.models), checkpoint.url)
    folders = Folders(opened.room)
    sources = _sources(recipe, urls, opened, folders)
    writing = _tokenizer_folder(tokenizer_url(keys, urls, reference), opened, folders)
    tokens = plan_tokenizer(recipe, sources, urls, writing, folders)
    # Parts of EMR-Merging are no models: configuration and tokenizer stay with the base.
    quantised = stays_quantised(found[reference][0], recipe.output_dtype)
    files = _side_files(found[reference][1], writing, folders, quantised)
    side, notes = ([], []) if recipe.merge_method == "emr" else files
    if recipe.output.card == "base":
        side.append(_own_card(recipe, found[reference][1]))
    versions = [{"name": s.name, "size": s.info.size, "version": s.info.version} for s in side]
    absolute = {r: found[url][0].url if url in found else writing.url for r, url in urls.items()}
    checkpoints = {source.url: aligned for source, aligned in zip(sources, tokens.checkpoints, strict=True)}
    of_url = {source.checkpoint.url: source.store for source in sources}
    if recipe.slices:
        configs = _configs({r: found[url][1] for r, url in merged.items()}, folders)
    else:
        configs = {donor_of(recipe): json_object(_text(s, opened.room)) for s in side if s.name == "config.json"}
    chosen = {r: checkpoints[url] for r, url in merged.items() if url in checkpoints}
    activations = _activations(recipe, recipe_dir, opened.room)
    absolute |= {name: file.url for name, file in activations.items()}
    card = {} if recipe.merge_method == "emr" else _card(recipe, urls, opened, configs.get(donor_of(recipe), {}))
    plan = make_plan(
        recipe,
        chosen,
        absolute,
        versions,
        configs,
        tokens.identity,
        tokens.warnings,
        activations,
        notes,
        {name: hashlib.sha256(data).hexdigest() for name, data in card.items()},
    )
    return Inputs(plan, [of_url[source.url] for source in plan.sources], side, tokens.files, card)


def inputs_of_parts(inputs: Inputs) -> tuple[Inputs, ...]:
    """The inputs of every output of a recipe; InputError as for `cut_parts`."""
    return tuple(replace(inputs, plan=plan) for plan in cut_parts(inputs.plan))


def _own_card(recipe: Recipe, base: Store) -> SideFile:
    """README.md of the model that gives the other files; RecipeError where it has none."""
    try:
        return SideFile(base, CARD_NAME, base.info(CARD_NAME))
    except FileNotFoundError:
        where = recipe.at(("output", "card"))
        raise RecipeError(f"{where}: {base.url} has no {CARD_NAME}", "write `card: true` or `card: false`") from None


def _card(recipe: Recipe, urls: Mapping[str, ModelUrl], opened: Opened, config: Config) -> dict[str, bytes]:
    """README.md and mergekit_config.yml, as far as the recipe wants them."""
    if recipe.output.card is False:
        return {}
    folders = {folder: opened.folder(folder) for url in urls.values() for folder in url if folder is not None}
    licence = common_licence([licence_of(folder) for folder in folders.values()])
    read = {folder: store.url for folder, store in folders.items()}
    files = card_files(recipe, urls, _files_named(recipe), read, licence, config)
    return {name: data for name, data in files.items() if name != CARD_NAME or recipe.output.card is True}


def _sources(recipe: Recipe, urls: Mapping[str, ModelUrl], opened: Opened, folders: Folders) -> list[Source]:
    """The reference and every model of `models`, or every model that slices are cut from; all with its names."""
    models = references_of(recipe) if recipe.slices else [entry.model for entry in recipe.models]
    reference = urls[donor_of(recipe)]
    names = opened.models[reference][0]
    if recipe.output.experts != "as-base":
        names = with_experts_as(names, recipe.output.experts)
    mapped = _mapped(recipe, urls, opened)
    used = dict.fromkeys((reference, *(urls[model] for model in models)))
    own = {url: with_experts_like(names, mapped.get(url, opened.models[url][0])) for url in used if url != reference}
    if recipe.output.ties == "apart":
        own = {url: replace(checkpoint, tied=is_tied(checkpoint, names)) for url, checkpoint in own.items()}
        names = with_ties_apart(names, [with_names_of(names, checkpoint) for checkpoint in own.values()])
    aligned = {url: with_the_names_of(names, with_names_of(names, checkpoint)) for url, checkpoint in own.items()}
    aligned[reference] = names
    return [
        Source(url, opened.models[url][1], aligned[url], _tokenizer_folder(url, opened, folders))
        for url in (reference, *(urls[model] for model in models))
    ]


def _mapped(recipe: Recipe, urls: Mapping[str, ModelUrl], opened: Opened) -> dict[ModelUrl, Checkpoint]:
    """Models whose tensors the recipe's `names` rename, renamed; RecipeError where a pattern renames nothing."""
    reference = urls[donor_of(recipe)]
    wanted: dict[ModelUrl, tuple[str, dict[str, str]]] = {}
    unused = set(recipe.names)
    for group in groups_of(recipe):
        for position, entry in enumerate(group.entries):
            url, where = urls[entry.model], recipe.at((*group.entry_path(position), "names"))
            if url == reference and entry.names:
                raise RecipeError(f"{where}: {entry.model} gives the names that the others are mapped to")
            if url == reference or not (names := names_of(recipe, entry)):
                continue
            if wanted.setdefault(url, (where, names))[1] != names:
                raise RecipeError(f"{where}: {entry.model} is listed again with other names; give it the same ones")
            own = with_mapped_names(opened.models[url][0], names, where)[1]
            if missed := [pattern for pattern in entry.names if pattern not in own]:
                raise RecipeError(f"{where}: no tensor of {entry.model} fits {some_names(missed)}")
            unused -= own
    if unused:
        raise RecipeError(f"{recipe.at(('names',))}: no tensor of any model fits {some_names(sorted(unused))}")
    return {url: with_mapped_names(opened.models[url][0], names, where)[0] for url, (where, names) in wanted.items()}


def _tokenizer_folder(url: ModelUrl, opened: Opened, folders: Folders) -> Store:
    """Where a model's tokenizer lies: beside its adapter if there is one, with tokens that the base may lack."""
    adapter = opened.folder(url.adapter) if url.adapter is not None else None
    return adapter if adapter is not None and TOKENIZER_NAME in folders.names(adapter) else opened.folder(url.base)


def _configs(stores: Mapping[str, Store], folders: Folders) -> dict[str, dict[str, Any]]:
    """The content of every model's config.json, where there is one."""
    found = {model: folders.read(store, ["config.json"]) for model, store in stores.items()}
    return {
        model: read_config(files["config.json"], f"{stores[model].url}/config.json")
        for model, files in found.items()
        if files
    }


def _activations(recipe: Recipe, recipe_dir: Path, room: Room) -> dict[str, Activations]:
    """What orders changes besides their magnitude, by the reference in the recipe."""
    return {name: open_activations(resolve_file_url(name, recipe_dir), room) for name in _files_named(recipe)}


def _files_named(recipe: Recipe) -> list[str]:
    """Files of activations that a recipe names, each once."""
    entries = [entry for group in groups_of(recipe) for entry in group.entries]
    return sorted({name for entry in entries if (name := activations_of(recipe, entry)) is not None})


def _without_base(recipe: Recipe, urls: Mapping[str, ModelUrl], opened: Opened) -> Recipe:
    """Leave out entries that are the base under another spelling or behind a link: they are no task vectors."""
    if recipe.base_model is None or not recipe.has_base or recipe.slices:
        return recipe
    base = _place(urls[recipe.base_model], opened)
    models = tuple(entry for entry in recipe.models if _place(urls[entry.model], opened) != base)
    fewest = recipe.method.fewest
    if len(models) < fewest:
        text = f"{recipe.merge_method} needs {fewest} or more models besides the base, `models` lists {len(models)}"
        raise RecipeError(text, "entries that are the base under another name do not count; list another model")
    return recipe.model_copy(update={"models": models})


def _place(url: ModelUrl, opened: Opened) -> tuple[str, ...]:
    """Where a model's folders are, whatever link or revision led there."""
    folders = [opened.folder(folder).url for folder in url if folder is not None]
    return tuple(folder if "://" in folder else os.path.realpath(folder) for folder in folders)
