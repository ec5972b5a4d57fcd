"""Writes the reference of the commands from the typer app: appended to `reference/commands` when Sphinx reads that page."""

import re

import typer
from typer.main import get_command

PAGE = "reference/commands"


def _prose(text):
    """A help text as Markdown: options in it are code."""
    return re.sub(r"(?<![\w`-])--[a-z][\w-]*", r"`\g<0>`", text.strip())


def _option(signature, text):
    return [f"```{{option}} {signature}", *_prose(text).splitlines(), "```", ""]


def _command(command, context, path):
    """The Markdown of one command, and of those below it."""
    lines = [f"## {path}", ""] if context.parent else []
    lines += [_prose(command.help or ""), ""]
    lines += ["```text", f"{path} {' '.join(command.collect_usage_pieces(context))}", "```", ""]
    lines += [f"```{{program}} {path}", "```", ""]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and (parameter.name != "help" or not context.parent):
            lines += _option(*record)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else []:
        below = command.get_command(context, name)
        lines += _command(below, type(context)(below, info_name=name, parent=context), f"{path} {name}")
    return lines


def reference():
    from twins.cli import app

    command = get_command(app)
    return "\n".join(_command(command, typer.Context(command, info_name="twins"), "twins"))


def _append(app, page, source):
    if page == PAGE:
        source[0] += "\n" + reference()


def setup(app):
    app.connect("source-read", _append)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: [PAGE])  # the app may have changed
    return {"parallel_read_safe": True, "parallel_write_safe": True}
