"""YAML as plain values, without what makes files of options go wrong: 1e-4 is a number, and no key stands twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
"""Floats in YAML 1.2; PyYAML follows 1.1, to which `1e-4` is text."""
_MAP = "tag:yaml.org,2002:map"


def parse_yaml(text: str) -> Any:
    """The one document of a text. Raises `ValueError` with the place for anything that is no such document."""
    try:
        return yaml.load(text, Loader=_loader())  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _loader() -> Any:
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    loader.add_constructor(_MAP, _mapping)
    return loader


def _mapping(loader: Any, node: Any) -> Any:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} is there twice", key.start_mark
            )
        seen.add(str(key.value))
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)
