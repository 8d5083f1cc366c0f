"""Models by name: the built-in list (data/models.json), or a ``config.json`` by its path."""

import difflib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.records import SpecError

CONFIG: Final = "config.json"
QUANTISATION: Final = "hf_quant_config.json"
LARGEST_BYTES: Final = 16_000_000
"""Of a config.json; the largest known, which names every expert, have 4 MB."""


@cache
def _model_list() -> Mapping[str, Mapping[str, Any]]:
    """Name -> aliases and public config.json of the models of data/models.json."""
    text = resources.files("llm_carbon_meter.data").joinpath("models.json").read_text("utf-8")
    models: Mapping[str, Mapping[str, Any]] = json.loads(text)
    return models


@cache
def _listed_names() -> Mapping[str, str]:
    """Every name and alias of the list, with and without its organisation, case folded."""
    names = {name.casefold(): name for name in _model_list()}
    for name, model in _model_list().items():
        for alias in model["aliases"]:
            names.setdefault(alias.casefold(), name)
            names.setdefault(alias.rpartition("/")[2].casefold(), name)
    return names


def built_in_names() -> Sequence[str]:
    """The models that are known without a config.json."""
    return tuple(_model_list())


def built_in_config(name: str) -> Mapping[str, Any]:
    """What the list holds of a model's config.json; a vision model's is that of its text part.

    Raises:
        SpecError: not in the list; names the nearest.
    """
    config: Mapping[str, Any] = _model_list()[_listed_name(name)]["config"]
    return config


def built_in_model(name: str) -> ModelSpec:
    """A model of the built-in list, by its short name or a hub id, in any case.

    Raises:
        SpecError: not in the list; names the nearest.
    """
    return model_spec(built_in_config(name), _listed_name(name))


def _listed_name(name: str) -> str:
    names = _listed_names()
    if name.casefold() in names:
        return names[name.casefold()]
    near = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.0)
    raise SpecError(
        f"model {name!r} is not in data/models.json; nearest is {names[near[0]]}; "
        "give the path of its config.json"
    )


def named_config(name: str, folder: Path | None = None) -> Mapping[str, Any]:
    """A ``config.json`` (or that of a folder), else what the built-in list has of a model.

    Args:
        name: a path, or a name of the list.
        folder: where a relative path is looked for after the working directory.

    Raises:
        SpecError: neither, or the file cannot be used.
    """
    places = [Path(name)] if folder is None else [Path(name), folder / name]
    for place in places if name else ():
        path = place / CONFIG if place.is_dir() else place
        if path.is_file():
            return _with_second_file(_read(path), path.parent / QUANTISATION)
        if place.is_dir():
            raise SpecError(f"{place} has no {CONFIG}; give the folder of a checkpoint")
    if name.endswith(".json"):
        raise SpecError(f"there is no file {' or '.join(map(str, places))}")
    return built_in_config(name)


def _with_second_file(config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The config with the quantisation that ModelOpt writes into a file beside it."""
    text = config.get("text_config")
    told = config.get("quantization_config") or (
        text.get("quantization_config") if isinstance(text, Mapping) else None
    )
    if told or not path.is_file():
        return config
    return {**config, "quantization_config": _read(path)}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise SpecError(f"{path} has {size} bytes; a config.json has at most {LARGEST_BYTES}")
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path} cannot be read as a config.json: {error}") from error
    if not isinstance(config, dict):
        raise SpecError(f"{path} holds a {type(config).__name__}; expected an object")
    return config
