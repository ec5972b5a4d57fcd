"""Docstrings are plain text with `code` in single backticks, as in Markdown; autodoc expects reStructuredText."""

import re


def to_rst(text):
    """The line with its code in double backticks and what else reStructuredText would read as markup escaped."""
    parts = re.split(r"(`+)(.+?)\1", text)  # text, backticks, code, text, …
    plain = [re.sub(r"([*|]|\w_\b)", lambda match: match[0][:-1] + "\\" + match[0][-1], part) for part in parts[::3]]
    return "".join(f"{part}``{code}``" for part, code in zip(plain, parts[2::3], strict=False)) + plain[-1]


def _convert(app, what, name, obj, options, lines):
    lines[:] = map(to_rst, lines)


def setup(app):
    app.connect("autodoc-process-docstring", _convert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
