"""From the command line to a recipe's config: scale, then the YAML file, then `key=value`.

A recipe is a Python function. Its config is its one parameter annotated with a `Config` section, or,
where it has plain parameters, a section made from the signature. `Config.scaled(scale)` may give the
values that a `scale=` stands for; a later source overrides an earlier one, key by key.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticUndefined

from cluster.errors import BadConfig, UserError
from modeling.config import Config
from modeling.errors import ConfigError
from pipelines.code import PACKAGES
from pipelines.graph import Pipeline
from pipelines.recipes import RECIPES


@dataclass(frozen=True)
class Recipe:
    """A recipe found by name or file.

    Attributes:
        label: what the user wrote, with an absolute file.
        name: the function's name; names the runs.
        folder: of the user's own file; None for ours.
    """

    label: str
    name: str
    function: Callable[..., Pipeline]
    folder: Path | None = None

    def section(self) -> tuple[type[Config], str | None]:
        """The config class, and the parameter that takes it (None: the fields are the parameters)."""
        parameters = list(inspect.signature(self.function).parameters.values())
        try:
            hints = get_type_hints(self.function, include_extras=True)
        except NameError as error:
            raise BadConfig(f"recipe {self.label}: {error}", "import the types that its parameters name") from None
        if len(parameters) == 1:
            kind = hints.get(parameters[0].name)
            if isinstance(kind, type) and issubclass(kind, Config):
                return kind, parameters[0].name
        fields: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                raise BadConfig(
                    f"recipe {self.label}: *{parameter.name} hides its settings", "name each parameter, with a type"
                )
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
        return create_model(f"{self.name}_config", __base__=Config, **fields), None

    def build(self, config: Config) -> Pipeline:
        """Call the recipe.

        Raises:
            UserError: as the recipe says; BadConfig where it does not return a Pipeline, or one of the user's own files
                fails otherwise.
        """
        _, parameter = self.section()
        try:
            if parameter is not None:
                made = self.function(config)
            else:
                made = self.function(**{name: getattr(config, name) for name in type(config).model_fields})
        except ValidationError as error:
            raise BadConfig(f"recipe {self.label}: {_message(error, None)}") from None
        except (UserError, ConfigError):
            raise
        except Exception as error:
            if self.folder is None:
                raise
            raise BadConfig(
                f"recipe {self.label} failed: {type(error).__name__}: {error}", _seen(error, self.folder)
            ) from None
        if not isinstance(made, Pipeline):
            raise BadConfig(
                f"recipe {self.label} returned {type(made).__name__}, not a Pipeline",
                "end it with `return Pipeline(stage, …)`",
            )
        return made


def find_recipe(label: str) -> Recipe:
    """A recipe by name (`bert`) or by `file.py:function`.

    Raises:
        BadConfig: unknown name (with the nearest), missing file or function, a file that does not import.
    """
    if ".py" not in label:
        if label not in RECIPES:
            near = difflib.get_close_matches(label, RECIPES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise BadConfig(
                f"unknown recipe {label!r}",
                f"{hint}known: {', '.join(RECIPES)}; or a file of your own: mine.py:function",
            )
        return Recipe(label, label, RECIPES.load(label))
    name, _, attribute = label.partition(".py")
    path = Path(name + ".py").expanduser().resolve()
    attribute = attribute.removeprefix(":")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        raise BadConfig(f"recipe file {path} does not exist", f"did you mean {near[0]}?" if near else "check the path")
    module = _import_file(path)
    if not attribute:
        raise BadConfig(f"{label}: which function of the file?", f"write {label}:NAME, one of {_functions(module)}")
    function = getattr(module, attribute, None)
    if not callable(function):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BadConfig(f"{path.name} has no function {attribute!r}", f"{hint}it has {_functions(module)}")
    return Recipe(f"{path}:{attribute}", attribute, function, path.parent)


def _functions(module: Any) -> str:
    names = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
    return ", ".join(names) or "none"


def _import_file(path: Path) -> Any:
    """Import a user's file under its own name, so that workers can import it too."""
    name = path.stem
    if name in PACKAGES or name in sys.stdlib_module_names:
        raise BadConfig(
            f"{path}: a recipe file may not be called {name}.py", f"a module named {name} exists; rename it"
        )
    if not name.isidentifier():
        raise BadConfig(f"{path}: {name!r} is not a Python module name", "use letters, digits and underscores")
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        sys.modules.pop(name, None)
        raise BadConfig(f"{path} does not import: {type(error).__name__}: {error}", _seen(error, path.parent)) from None
    return module


def _seen(error: Exception, folder: Path) -> str:
    """The line of the user's own files that an error came through last, before it went into a library."""
    import traceback

    if isinstance(error, SyntaxError) and error.filename:
        return f"see {error.filename}, line {error.lineno}"
    way = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in way if Path(frame.filename).is_relative_to(folder) and "site-packages" not in frame.filename
    ]
    last = (own or way)[-1]
    return f"see {last.filename}, line {last.lineno}"


def resolve(recipe: Recipe, overrides: Iterable[str] = (), file: str | None = None) -> Config:
    """The recipe's config from its scale, a YAML file and `key=value` words.

    Raises:
        BadConfig: unknown key (with the nearest), wrong type, unreadable file, settings that another one leaves without
            effect; names the field.
    """
    kind, _ = recipe.section()
    given: dict[str, Any] = {}
    if file is not None:
        _merge(given, _read_yaml(file))
    for word in overrides:
        _merge(given, parse_word(word))
    _check_brought(kind, given)
    base = _base(kind, given.get("scale"))
    _give_way(kind, base, given)
    _merge(base, given)
    return validate(kind, base)


def defaults(recipe: Recipe) -> dict[str, Any]:
    """The fields that have a value without any word of the user, sections as instances."""
    kind, _ = recipe.section()
    found, base = {}, _base(kind, None)
    for name, field in kind.model_fields.items():
        value = base[name] if name in base else field.get_default(call_default_factory=True)
        if value is not PydanticUndefined:
            of: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            try:
                found[name] = TypeAdapter(of).validate_python(value)
            except ValidationError as error:
                raise BadConfig(
                    f"recipe {recipe.label}: {name}: {_message(error, None)}", "correct its default"
                ) from None
    return found


def _base(kind: type[Config], scale: Any) -> dict[str, Any]:
    """What stands under the user's words: the recipe's own defaults of sections, then its values of the scale."""
    base: dict[str, Any] = {}
    for name, field in kind.model_fields.items():  # what a recipe's own defaults set stays under a partial override
        if isinstance(field.default, BaseModel):
            base[name] = field.default.model_dump(exclude_unset=True)
    if (scaled := getattr(kind, "scaled", None)) is not None:
        scale = kind.model_fields["scale"].get_default() if scale is None else scale
        _merge(base, scaled(scale) if isinstance(scale, str) else {})
    return base


def _give_way(kind: type[BaseModel], base: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Take out of `base` what `given` has other words for (`Config.one_of`): a budget in tokens for one in steps."""
    for names in getattr(kind, "one_of", ()):
        if any(name in given for name in names):
            for name in names:
                base.pop(name, None)
    for name, field in kind.model_fields.items():
        inner, below, above = field.annotation, base.get(name), given.get(name)
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(below, dict):
            _give_way(inner, below, above if isinstance(above, Mapping) else {})


def _check_brought(kind: type[Config], given: Mapping[str, Any]) -> None:
    """Refuse settings of a section beside what brings its own (`Config.brought`): they would count for nothing."""
    for name, sections in kind.brought.items():
        for section in sections if given.get(name) else ():
            words = given.get(section)
            if words:
                named = ", ".join(f"{section}.{key}" for key in words) if isinstance(words, Mapping) else section
                raise BadConfig(f"{name} brings its own {section}, so {named} would count for nothing", "leave one out")


def validate(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Make a config section; errors name the field, what was found and what was expected."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise BadConfig(_message(error, kind), "see `triptych recipes` for the fields of each recipe") from None


def parse_word(word: str) -> dict[str, Any]:
    """`pretrain.steps=200` as {"pretrain": {"steps": 200}}; values are YAML (`[a,b]`, `true`, `1e-3`)."""
    key, equals, text = word.partition("=")
    if not equals or not all(re.fullmatch(r"[\w:-]+", part) for part in key.split(".")):
        raise BadConfig(f"{word!r} is not of the form key=value", "for instance pretrain.steps=200")
    value = _parse_value(text)
    for part in reversed(key.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found


def _parse_value(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text
    if isinstance(value, str) and any(c.isdigit() for c in value) and "_" not in value:
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as text
            return float(value)
    if value is None or isinstance(value, str | int | float | bool | list | dict):
        return value
    return text  # a date, say, is text here


def _read_yaml(file: str) -> dict[str, Any]:
    import yaml

    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(
            f"--config {file}: {getattr(error, 'strerror', None) or error}", "give a readable YAML file"
        ) from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise BadConfig(f"--config {file} is not YAML: {str(error).splitlines()[0]}", "correct it") from None
    if not isinstance(values, dict):
        raise BadConfig(
            f"--config {file} holds a {type(values).__name__}, not keys and values", "write key: value lines"
        )
    return values


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Put `values` over `into`, section by section. A preset replaces a section; fields after it change it."""
    for key, value in values.items():
        before = into.get(key)
        if isinstance(value, Mapping) and isinstance(before, str):
            before = into[key] = {"preset": before}
        if isinstance(value, Mapping) and isinstance(before, dict) and "preset" not in value:
            _merge(before, value)
        else:
            into[key] = {**value} if isinstance(value, Mapping) else value


def _message(error: ValidationError, kind: type[BaseModel] | None) -> str:
    lines = []
    for item in error.errors(include_url=False):
        where = item["loc"][:-1] if item["loc"][-1:] == ("[key]",) else item["loc"]
        path = ".".join(str(part) for part in where)
        found = item.get("input")
        if item["type"] == "extra_forbidden":
            fields = _fields(kind, where[:-1])
            near = difflib.get_close_matches(str(where[-1]), fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"unknown key {path!r}{hint}" + (f" (known: {', '.join(fields)})" if fields else ""))
        elif item["type"] == "missing":
            lines.append(f"{path}: missing; give {path}=…")
        elif item["type"] == "tuple_type" and isinstance(found, str | int | float) and "[" not in path:
            lines.append(f"{path}: expected a list, found {found!r}; give {path}=[{found}]")
        else:
            said = item["msg"].removeprefix("Value error, ")
            said = said[0].lower() + said[1:] if said[:1].isupper() and not said[1:2].isupper() else said
            shown = "" if isinstance(found, BaseModel | Mapping) else f", found {found!r}"
            lines.append(f"{path}: {said}{shown if repr(found) not in said else ''}")
    return "; ".join(lines)


def _fields(kind: Any, path: Iterable[Any]) -> list[str]:
    """The field names of the section at `path` below `kind`; in a `dict` any name leads to its values."""
    for part in path:
        inner = kind.model_fields.get(str(part)) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = _section_in(inner.annotation) if inner is not None else None
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _section_in(annotation: Any) -> Any:
    """The section, or `dict`, that a field's type is or has among its choices; None for another type."""
    for each in (annotation, *(() if get_origin(annotation) is dict else get_args(annotation))):
        if get_origin(each) is dict or (isinstance(each, type) and issubclass(each, BaseModel)):
            return each
    return None
