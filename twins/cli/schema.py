"""`twins schema`."""

from enum import StrEnum
from typing import Annotated

import typer

from . import output


class Kind(StrEnum):
    """What a JSON file describes."""

    SPEC = "spec"
    RECIPE = "recipe"


def schema(kind: Annotated[Kind, typer.Argument(help="A network's spec, or a training recipe.")] = Kind.SPEC) -> None:
    """Print the JSON Schema of specs or recipes, with which an editor can complete and check them."""
    from .. import schema as schemas

    output.show_json(schemas.spec_schema() if kind is Kind.SPEC else schemas.recipe_schema())
