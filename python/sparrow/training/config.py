"""Settings from a YAML file and `a.b=c` overrides into dataclasses; an unknown key is an error."""

import dataclasses
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
RECIPES = pathlib.Path(__file__).parents[1] / "assets" / "recipes"  # of drafters, one file each


class ConfigError(ValueError):
    """A setting that does not exist, or a value that does not fit."""


def load_config(cls: type[T], path: str | pathlib.Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Builds the dataclass `cls` from settings, then `a.b=c` overrides, values read as YAML.

    Args:
        path: a YAML file, or the name of a recipe in the package ("sparrow", "paper", ...); None = the defaults of cls.

    Raises:
        FileNotFoundError: neither; the recipes are named.
        ConfigError: not a mapping, an unknown key, a value of another type, or one the dataclass refuses.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(_settings_file(path).read_text()) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {error}") from None
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"an override must look like a.b=c, got {override!r}")
        _put(values, key.split("."), _scalar(value), override)
    return build(cls, values)


def _settings_file(path: str | pathlib.Path) -> pathlib.Path:
    files = [pathlib.Path(path), RECIPES / f"{path}.yaml"]
    for file in files:
        if file.is_file():
            return file
    names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(f"no such file of settings: {path}; the recipes in the package are {names}")


def build(cls: type[T], values: Any, where: str = "") -> T:
    """The dataclass from a mapping, nested dataclasses included."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where.rstrip('.') or cls.__name__} must be a mapping, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(map(str, values)) - set(known)):
        raise ConfigError(f"unknown setting {where + unknown[0]}; there are {', '.join(where + k for k in known)}")
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise ConfigError(f"{where}{f.name} must be given")
    try:
        return cls(**{key: _fit(known[key], value, where + key) for key, value in values.items()})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where.rstrip('.') or cls.__name__}: {error}") from None


def _fit(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if value is None and type(None) in typing.get_args(kind):
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where + ".")
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        return tuple(_fit(typing.get_args(kind)[0], v, where) for v in value)
    if kind is float and isinstance(value, str):
        value = _number(value, where)  # YAML reads 1e-3 as text
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {kind.__name__}, got {value!r}")
    return value


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{where} must be float, got {text!r}") from None


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _put(values: dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {key} holds a value, not settings")
    values[keys[-1]] = value
