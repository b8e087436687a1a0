"""Options of mergekit's command, refused with what takes each one's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

PLACES: Mapping[tuple[str, ...], str] = {
    ("--cuda",): "`--device cuda`",
    ("--low-cpu-memory", "--lazy-unpickle", "--lazy-loader", "--read-to-gpu"): (
        "not needed: `--memory` is a limit that holds"
    ),
    ("--num-threads", "--async-write", "--write-threads"): ("`--workers`; reading, merging and writing overlap always"),
    ("--multi-gpu", "--gpu-rich"): "`--ray` spreads a merge over workers and machines",
    ("--out-shard-size",): "`output: {shard_size: 2GB}` in the recipe, in bytes",
    ("--random-seed",): "`seed` in the recipe",
    ("--copy-tokenizer",): "always; `tokenizer_source` in the recipe says whose",
    ("--write-model-card",): "always; `output: {card: false}` in the recipe leaves it out",
    ("--allow-crimes",): "not needed: tensors are matched by name, whatever config.json calls the architecture",
    ("--lora-merge-cache", "--lora-merge-dtype"): "not needed: adapters are applied in fp32 while reading",
    ("--unsafe-truncate-embeddings",): (
        "`tokenizer_source` in the recipe; or `vocab: intersect`, which keeps the base's other rows"
    ),
    ("--trust-remote-code",): "no code of a model is ever run",
    ("--clone-tensors", "--safe-serialization"): "always",
    ("--transformers-cache",): "the Hub's cache is found by HF_HOME or HF_HUB_CACHE in the environment",
    ("--verbose", "--quiet"): "`--json` for programs, `--debug` for tracebacks",
}
"""By the names of options that something else, or nothing, takes the place of."""


class MergeCommand(click.Command):
    """A command to which mergekit's options may come by habit."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command.parse_args`; UsageError that lists every option of mergekit's."""
        own = {name for parameter in self.params for name in parameter.opts}
        if found := mergekit_options(args, own):
            shown = "".join(f"\n  {given}: {place}" for given, place in found.items())
            raise click.UsageError(f"options of mergekit, and what takes their place here:{shown}", ctx)
        return super().parse_args(ctx, args)


def mergekit_options(args: Sequence[str], own: set[str]) -> dict[str, str]:
    """What takes the place of every option of mergekit's among `args`, as given, that is none of `own`."""
    places = {name: place for names, place in PLACES.items() for name in names}
    found = {}
    for arg in args[: args.index("--")] if "--" in args else args:
        given = arg.partition("=")[0]
        name = given.replace("--no-", "--", 1)
        if name in places and given not in own:
            found[given] = places[name]
    return found
