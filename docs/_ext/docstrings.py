"""Docstrings are plain text with `code` in single backticks, as in Markdown; autodoc expects reStructuredText."""

import re

from sphinx.util import inspect

MOCKED = "(*args: Any, **kwargs: Any)"


def to_rst(text):
    """The line with its code in double backticks and what else reStructuredText would read as markup escaped."""
    parts = re.split(r"(`+)(.+?)\1", text)  # text, backticks, code, text, …
    plain = [re.sub(r"([*|]|\w_\b)", lambda match: match[0][:-1] + "\\" + match[0][-1], part) for part in parts[::3]]
    return "".join(f"{part}``{code}``" for part, code in zip(plain, parts[2::3], strict=False)) + plain[-1]


def _convert(app, what, name, obj, options, lines):
    lines[:] = map(to_rst, lines)


def _signature(app, what, name, thing, options, signature, returned):
    """A class's own `__init__`, where a mocked framework's base class hides it; and fields of data classes made readable."""
    if what == "class" and signature == MOCKED:
        return inspect.stringify_signature(inspect.signature(thing.__init__, bound_method=True)), returned
    if "<factory>" in (signature or ""):  # which is not Python: Sphinx would print the line as it is
        return re.sub(r"~[\w.]+\.(\w+)", r"\1", signature).replace("<factory>", "..."), returned
    return None


def _skip(app, what, name, member, skip, options):
    """Fields of named tuples, which the signature shows and have no docstring of their own."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app):
    app.connect("autodoc-process-docstring", _convert)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
