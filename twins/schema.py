"""JSON Schemas of specs and recipes, so that an editor completes and checks them: made from the tables that check them."""

from collections.abc import Mapping
from typing import Any

from shared import limits, networks, recipes, spec
from shared.checks import Value

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def spec_schema() -> dict[str, Any]:
    """The JSON Schema of a network spec. It knows keys and values, not whether layers fit: loading the spec tells that."""
    kinds = [_layer(kind, *keys) for kind, keys in spec.TYPES.items()]
    definitions = {
        "layers": {"type": "array", "minItems": 1, "maxItems": limits.LAYERS, "items": {"oneOf": kinds}},
        "preprocessing": _object("channels scale mean std", "resize crop", networks.PREPROCESSING),
    }
    schema = _object(spec.REQUIRED, spec.OPTIONAL, spec.SPEC_VALUES)
    return {"$schema": DIALECT, "title": "A network", **schema, "$defs": definitions}


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a training recipe."""
    definitions = {
        "preprocessing": _object("channels scale mean std", "resize crop", networks.PREPROCESSING),
        "augmentation": _object("", recipes.AUGMENTATIONS, recipes.VALUES),
        "optimizer": {"oneOf": [_named(name, *keys) for name, keys in recipes.OPTIMIZERS.items()]},
        "schedule": {"oneOf": [_named(name, *keys) for name, keys in recipes.SCHEDULES.items()]},
    }
    schema = _object(recipes.REQUIRED, recipes.OPTIONAL, recipes.VALUES)
    length = {"oneOf": [{"required": ["epochs"]}, {"required": ["steps"]}]}
    return {"$schema": DIALECT, "title": "A training recipe", **schema, **length, "$defs": definitions}


def _object(required: str, optional: str, values: Mapping[str, Value]) -> dict[str, Any]:
    """An object with these keys, separated by spaces, and no others."""
    keys = f"{required} {optional}".split()
    properties = {key: {"description": f"Expected {values[key].words}.", **values[key].schema} for key in keys}
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def _layer(kind: str, required: str, optional: str) -> dict[str, Any]:
    name = {"type": "string", "pattern": f"^{spec.LAYER_NAME}$", "maxLength": limits.WORD}
    schema = _object(required, optional, spec.values_of(kind))
    schema["properties"] = {"name": name, "type": {"const": kind}, **schema["properties"]}
    schema["required"] = ["name", "type", *schema["required"]]
    return schema


def _named(name: str, required: str, optional: str) -> dict[str, Any]:
    schema = _object(required, optional, recipes.VALUES)
    schema["properties"] = {"name": {"const": name}, **schema["properties"]}
    schema["required"] = ["name", *schema["required"]]
    return schema
