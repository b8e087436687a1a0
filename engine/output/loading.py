"""Whether a finished output loads into its model: names and shapes, then every shard."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, RecipeError, ResourceError, some_names
from .problems import Problem

MODULES_NAME = "modules.json"


@dataclass(frozen=True)
class Loading:
    """What loading an output into its empty model showed."""

    architecture: str
    tensors: int
    """Tensors that were loaded."""
    tied: tuple[tuple[str, ...], ...]
    """Names that share one tensor."""
    problems: tuple[Problem, ...]
    modules: str = ""
    """What became of the modules of sentence-transformers; empty where there are none."""


def check_loading(folder: str) -> Loading:
    """Build the empty model of an output's config.json and load every shard into it, one shard in memory at a time.

    Which names a model's class takes from a checkpoint is transformers' knowledge (it renames some), so missing and
    unexpected names come from its own loader, that of the Auto class which users call, on a device without memory; the
    values go through accelerate. A folder with modules.json is loaded with sentence-transformers besides, where that is
    installed; all of it is in memory then.

    Args:
        folder: a local output directory that `verify` found whole.

    Raises:
        RecipeError: the output is not a local directory.
        ResourceError: transformers is not installed.
        IntegrityError: config.json names no architecture that the installed transformers has.
    """
    if "://" in folder:
        raise RecipeError(f"--load needs a local directory, got {folder}", "copy the output to a disk first")
    model, architecture = _empty_model(folder)
    from accelerate.utils import find_tied_parameters

    model.tie_weights()  # a model without memory has no ties until then
    tied = tuple(tuple(sorted(names)) for names in find_tied_parameters(model))
    problems = _name_problems(folder, _loader(model), type(model))
    count = 0
    for shard in sorted(Path(folder).glob("*.safetensors")):
        count += _load_shard(model, shard, problems)
    modules = _load_modules(folder, problems) if (Path(folder) / MODULES_NAME).exists() else ""
    return Loading(architecture, count, tied, tuple(problems), modules)


def _empty_model(folder: str) -> tuple[Any, str]:
    """The model of config.json without memory for its weights, in the checkpoint's dtype, and its class's name."""
    try:
        import transformers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise ResourceError(f"--load needs {error.name}", "install it: pip install 'anabranch[demo]'") from None
    # What they would warn about is reported here as a problem, or is meant: the model has no memory yet.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        wanted = (config.architectures or ["AutoModel"])[0]
        model_class = getattr(transformers, wanted, None)
        if model_class is None:
            raise ValueError(f"transformers {transformers.__version__} has no {wanted}")
        with init_empty_weights():
            model = model_class.from_config(config) if wanted == "AutoModel" else model_class(config)
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{folder}/config.json gives no model: {error}",
            "the installed transformers may be older than the model; code from a checkpoint is never run",
        ) from error
    return model.to(config.dtype) if config.dtype is not None else model, type(model).__name__


def _loader(model: Any) -> Any:
    """The Auto class that makes this model of its config.json; its own class where none does."""
    from transformers.models.auto import modeling_auto

    for name in sorted(vars(modeling_auto)):
        auto = getattr(modeling_auto, name)
        mapping = getattr(auto, "_model_mapping", None) if name.startswith("AutoModel") else None
        if mapping is not None and type(model.config) in mapping:
            made = mapping[type(model.config)]
            if type(model) in (made if isinstance(made, tuple) else (made,)):
                return auto
    return type(model)


def _name_problems(folder: str, loader: Any, expected: type) -> list[Problem]:
    """Tensors that the model lacks and would start anew, and tensors that it does not know."""
    architecture = expected.__name__
    try:
        model, info = loader.from_pretrained(
            folder,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,  # they are reported with the others
            output_loading_info=True,
            use_safetensors=True,
        )
    except (ValueError, RuntimeError, OSError) as error:
        return [Problem("config.json", f"{architecture} does not load the shards: {error}")]
    if type(model) is not expected:
        text = f"{loader.__name__} makes a {type(model).__name__} of this folder, expected {architecture}"
        return [Problem("config.json", text)]
    texts = {
        "missing_keys": f"{architecture} starts tensors anew that no shard has",
        "unexpected_keys": f"the shards have tensors that {architecture} does not know",
        "mismatched_keys": f"the shards have tensors of another shape than {architecture}, which starts them anew",
    }
    info["mismatched_keys"] = [name for name, *_ in info["mismatched_keys"]]
    return [
        Problem("config.json", f"{text}: {some_names(sorted(info[key]))}") for key, text in texts.items() if info[key]
    ]


def _load_modules(folder: str, problems: list[Problem]) -> str:
    """Load the folder as its users do who embed sentences; what became of it, in words."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return f"{MODULES_NAME}: not loaded, because sentence-transformers is not installed"
    try:
        model = SentenceTransformer(folder, device="cpu", local_files_only=True, trust_remote_code=False)
    except (ValueError, RuntimeError, OSError, LookupError, TypeError, AttributeError, ImportError) as error:
        problems.append(Problem(MODULES_NAME, f"sentence-transformers does not load the folder: {error}"))
        return ""
    return f"{MODULES_NAME}: sentence-transformers loads {', '.join(type(module).__name__ for module in model)}"


def _load_shard(model: Any, shard: Path, problems: list[Problem]) -> int:
    """Load one shard with accelerate, then free it again; returns its number of tensors."""
    from accelerate import load_checkpoint_in_model
    from accelerate.utils import set_module_tensor_to_device
    from safetensors import safe_open

    with safe_open(shard, "pt") as file:
        names = set(file.keys())
    try:
        load_checkpoint_in_model(model, str(shard), device_map={"": "cpu"})
    except (ValueError, RuntimeError) as error:
        problems.append(Problem(shard.name, f"does not load: {error}"))
    for name in names & set(model.state_dict()):
        set_module_tensor_to_device(model, name, "meta")
    return len(names)
