"""`lrcompress completion`: shell completion scripts for commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lrcompress_cli.terminal import Outcome, Terminal, reporting

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@reporting
@click.pass_context
def command(context: click.Context, terminal: Terminal, shell: str) -> Outcome:
    """Print the completion script of SHELL (bash, zsh or fish).

    For this session: eval "$(lrcompress completion bash)"
    """
    root = context.find_root().command
    program = root.name or ""
    complete = get_completion_class(shell)
    assert complete is not None
    script = complete(root, {}, program, f"_{program.upper()}_COMPLETE").source()
    return Outcome({"shell": shell, "script": script}, [script])
