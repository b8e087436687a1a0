"""The commands that documents show are there, and the README names all that are."""

from __future__ import annotations

import re

import click

from anabranch.cluster.cli import cli

from ..test_docs import README, commands


def test_shown_commands_exist() -> None:
    seen = set()
    for path, words in commands():
        if words[0] != "anabranch":
            continue
        assert words[1] in cli.commands, f"{path.name}: anabranch {words[1]}"
        command = cli.commands[words[1]]
        known = {flag for parameter in command.params for flag in parameter.opts} | {"--help", "-h"}
        given = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
        assert given <= known, f"{path.name}: anabranch {words[1]} has no {sorted(given - known)}"
        seen.add(words[1])
    assert {"plan", "merge", "verify"} <= seen


def test_every_command_is_in_the_readme() -> None:
    named = set(re.findall(r"`anabranch (\w+)", README)) | {w[1] for p, w in commands() if w[0] == "anabranch"}
    assert set(cli.commands) <= named
    for name, command in cli.commands.items():
        assert isinstance(command, click.Command) and command.help, f"{name} has no help"
