"""Runs inside mergekit's environment, not ours: many recipes in one process, because each start costs seconds.

    python mergekit_driver.py JOBS RESULTS

JOBS is a JSON list of {"recipe": PATH, "out": FOLDER or null, "seed": INTEGER}; without a folder the recipe is only
parsed, as `mergekit-yaml` parses it before it looks for models. Models are named relative to the working directory.
RESULTS becomes {"answers": [...], "methods": [...]}: null to each job, where mergekit was content, or the text of its
error; and the names of all its merge methods.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml
from mergekit import merge_methods
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def do(job: dict[str, object]) -> None:
    text = Path(str(job["recipe"])).read_text(encoding="utf-8")
    configuration = MergeConfiguration.model_validate(yaml.safe_load(text))
    merge_methods.get(configuration.merge_method)
    if job["out"] is None:
        return
    options = MergeOptions(
        lazy_unpickle=True,
        copy_tokenizer=bool(configuration.chat_template),
        clone_tensors=True,  # a layer may stand in the output twice
        write_model_card=False,
        quiet=True,
        random_seed=job["seed"],
        lora_merge_cache="merged-adapters",
    )
    run_merge(configuration, str(job["out"]), options)


def main() -> None:
    jobs, results = sys.argv[1:]
    answers: list[str | None] = []
    for job in json.loads(Path(jobs).read_text()):
        try:
            do(job)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer to this recipe)
            answers.append(f"{type(error).__name__}: {error}")
        else:
            answers.append(None)
    methods = [method.spec.name for method in merge_methods.registered_methods()]
    Path(results).write_text(json.dumps({"answers": answers, "methods": methods}))


if __name__ == "__main__":
    main()
