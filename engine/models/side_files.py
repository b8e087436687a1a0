"""Small files that go with a model's weights: those of its folder, and those in folders that its loaders look into.

What would make a loader take merged weights for something else stays behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from ..errors import InputError
from ..storage import Store
from .header import check_file_name

TEMPLATES_FOLDER = "additional_chat_templates"
"""Where transformers keeps chat templates beside the first one."""
MODULES_NAME = "modules.json"
"""The modules of a model of sentence-transformers; each but the first lies in a folder of its own."""
ROUTER_NAME = "router_config.json"
"""In the folder of a module that chooses between others, which lie in folders below it."""
MAX_MODULES_BYTES = 1 << 20

CONFIG_NAME = "config.json"
_OF_AN_ADAPTER = "adapter_config.json"
"""With it, transformers takes a folder for an adapter and loads another model."""
_OF_OTHER_WEIGHTS = "params.json"
"""Beside config.json it describes `consolidated*.safetensors`, which an output never has."""
QUANTISED_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")
"""Of ModelOpt, AutoGPTQ and AWQ: with one of them, a server takes the weights for quantised ones."""


def output_file_names(store: Store, names: Sequence[str], quantised: bool) -> tuple[list[str], list[str]]:
    """Names of the files that an output has beside its weights, and notes on what is not simply copied.

    Args:
        store: the model's folder.
        names: its side files.
        quantised: whether the output's weights are quantised.

    Raises:
        InputError: modules.json is damaged or names a folder outside the model's.
    """
    misleading = [name for name in names if _misleads(name, names, quantised)]
    inside = [*_templates(store), *_module_files(store, names)]
    notes = []
    if misleading:
        notes.append(f"{store.url}: not in the output, whose weights are others: {', '.join(misleading)}")
    if weights := [name for name in inside if name.endswith((".safetensors", ".bin"))]:
        notes.append(f"{store.url}: copied and not merged, weights of modules in folders: {', '.join(weights)}")
    return sorted([*(name for name in names if name not in misleading), *inside]), notes


def _misleads(name: str, names: Sequence[str], quantised: bool) -> bool:
    if name in QUANTISED_FILES:
        return not quantised
    return name == _OF_AN_ADAPTER or (name == _OF_OTHER_WEIGHTS and CONFIG_NAME in names)


def _templates(store: Store) -> list[str]:
    return [name for name in store.list(TEMPLATES_FOLDER) if name.endswith(".jinja") and _is_there(store, name)]


def _module_files(store: Store, names: Sequence[str]) -> Iterator[str]:
    """Files of every folder in which modules.json places a module; pickles only where there are no safetensors."""
    for folder in _module_folders(store, names):
        listed = [name for name in store.list(folder) if not name.rpartition("/")[2].startswith(".")]
        safe = any(name.endswith(".safetensors") for name in listed)
        for name in listed:
            if not (safe and fnmatchcase(name, "*.bin")) and _is_there(store, name):
                yield name


def _module_folders(store: Store, names: Sequence[str]) -> list[str]:
    if MODULES_NAME not in names:
        return []
    where = f"{store.url}/{MODULES_NAME}"
    try:
        modules = json.loads(store.read_bytes(MODULES_NAME, MAX_MODULES_BYTES))
        paths = [module["path"] for module in modules]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise InputError(f"{where} is not a list of modules with a path each", "Fetch the file again.") from None
    found: dict[str, None] = {}
    for path in paths:
        if not isinstance(path, str):
            raise InputError(f"{where}: a path is {str(path)[:80]}, expected text", "Fetch the file again.")
        if path:
            found[_checked(path.removesuffix("/"), where)] = None
        for part in _routed(store, f"{path}/" if path else ""):
            found[part] = None
    return list(found)


def _routed(store: Store, folder: str) -> list[str]:
    """Folders of the modules between which a router in a folder chooses."""
    name = f"{folder}{ROUTER_NAME}"
    try:
        types = json.loads(store.read_bytes(name, MAX_MODULES_BYTES))["types"]
        return [f"{folder}{_checked(part, f'{store.url}/{name}')}" for part in types]
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError, TypeError, KeyError):
        raise InputError(f"{store.url}/{name} is not an object with types", "Fetch the file again.") from None


def _checked(path: str, where: str) -> str:
    """A path that stays inside the folder; InputError for any other."""
    for part in path.split("/"):
        check_file_name(part, where)
    return path


def _is_there(store: Store, name: str) -> bool:
    """True; InputError where the file is a broken link."""
    try:
        store.info(name)
    except FileNotFoundError as error:
        raise InputError(f"{store.url}/{name}: a broken link", "Finish the download.") from error
    return True
