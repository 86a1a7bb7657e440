"""A recipe: all sections together, read from YAML and dotted overrides, written back resolved."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from topr.config.base import Section, unchecked_fixed
from topr.config.curation import CurateConfig
from topr.config.sections import (
    EvaluateConfig,
    GenerateConfig,
    GradeConfig,
    LoopConfig,
    ModelConfig,
)
from topr.config.tasks import ArithmeticConfig, TaskConfig
from topr.config.training import RENAMED, TrainConfig
from topr.errors import ConfigError

BASELINE = frozenset({"baseline", "effective_positive_share"})
"""Keys of `train` of which one at most may be set."""

SectionT = TypeVar("SectionT", bound=BaseModel)


class Comparison(Section):
    """Another way of training the starting model on the first iteration's rollouts."""

    curate: dict[str, Any] = Field(default_factory=dict)
    """Keys of `curate` that differ."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of `train` that differ."""

    def fixed(self) -> dict[str, Any]:
        """See `Section.fixed`; the keys are checked together with the recipe's."""
        kept = super().fixed()
        if "train" in kept:
            kept["train"] = unchecked_fixed(TrainConfig, kept["train"])
        return kept


class Recipe(Section):
    """Everything that fixes a run."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"description", "needs"})

    name: str
    """Name of the recipe: that of its file where none is given."""
    description: str = ""
    """One line for `topr recipes`."""
    needs: str = ""
    """What it takes: hardware, time, downloads."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of sampling and training."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """Times that the loop generates, grades, curates, trains and evaluates."""
    loop: LoopConfig = LoopConfig()
    task: TaskConfig
    model: ModelConfig = ModelConfig()
    generate: GenerateConfig = GenerateConfig()
    grade: GradeConfig = GradeConfig()
    curate: CurateConfig = CurateConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    compare: dict[str, Comparison] = Field(default_factory=dict)
    """Named comparisons, each trained from the starting model on the first iteration's rollouts."""
    verifier: dict[str, Any] | None = None
    """The sections of a second recipe, for a verifier of what the loop's model writes; its
    candidates come from this run."""

    def fixed(self) -> dict[str, Any]:
        """See `Section.fixed`; the verifier's sections are checked when its run begins."""
        kept = super().fixed()
        if "verifier" in kept:
            kept["verifier"] = unchecked_fixed(Recipe, kept["verifier"])
        return kept

    def fingerprint(self) -> str:
        """Return a hash of everything that fixes the run's numbers."""
        return hashlib.sha256(json.dumps(self.fixed(), sort_keys=True).encode()).hexdigest()[:16]


def shipped_recipes() -> dict[str, Traversable]:
    """Return the recipes in the package by name."""
    folder = resources.files("topr") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {file.name.removesuffix(".yaml"): file for file in files}


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        source: name of a shipped recipe, or path of a YAML file.
        overrides: `key.key=value`, the value in YAML: `train.learning_rate=1e-6`.

    Raises:
        ConfigError: no such recipe, broken YAML, an unknown key or a value that does not fit.

    """
    values = read_values(source, overrides, shipped_recipes(), what="recipe")
    values.setdefault("name", Path(str(source)).stem)
    recipe = validate(Recipe, values, where=f"recipe {source}")
    for name, comparison in recipe.compare.items():
        derived_sections(recipe, comparison, where=f"recipe {source}, compare.{name}")
    if recipe.verifier is not None:
        verifier_recipe(recipe, candidates="", test_candidates="", generator="")
    return recipe


def derived_sections(
    recipe: Recipe, comparison: Comparison, *, where: str
) -> tuple[CurateConfig, TrainConfig]:
    """Return a comparison's own `curate` and `train`: the recipe's with its differences."""
    train = recipe.train.model_dump()
    if comparison.train.get("objective", recipe.train.objective) != recipe.train.objective:
        train |= {"taper": None, "objective_args": {}}  # they belong to the recipe's objective
    if train.keys() & comparison.train.keys() & BASELINE:
        train |= dict.fromkeys(BASELINE)  # each fixes the other
    return (
        validate(CurateConfig, recipe.curate.model_dump() | comparison.curate, where=where),
        validate(TrainConfig, train | comparison.train, where=where),
    )


def verifier_recipe(
    recipe: Recipe, *, candidates: str, test_candidates: str, generator: str
) -> Recipe:
    """Return the recipe of a run's verifier.

    Args:
        recipe: of the run, with its `verifier`.
        candidates: graded rollouts that the verifier learns from.
        test_candidates: those that it is measured on.
        generator: the model that wrote them: what the built-in verifier starts from.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.

    """
    values = dict(recipe.verifier or {})
    task = dict(values.get("task") or {})
    task |= {"name": "verifier", "rollouts": candidates, "test_rollouts": test_candidates}
    if isinstance(recipe.task, ArithmeticConfig):
        warmup = {"seed": recipe.seed, "generator": generator}
        warmup |= {"arithmetic": recipe.task.model_dump(mode="json")}
        task["warmup"] = {**warmup, **(task.get("warmup") or {})}
    # What a run may be told while it is under way holds for its verifier's as well.
    values |= {"name": f"{recipe.name}-verifier", "task": task}
    values["grade"] = {"none_right": recipe.grade.none_right, **(values.get("grade") or {})}
    values.setdefault("seed", recipe.seed)
    return validate(Recipe, values, where=f"recipe {recipe.name}, verifier")


def load_section(
    section: type[SectionT], name: str, recipe: str | Path | None, overrides: Sequence[str] = ()
) -> SectionT:
    """Read one section, from a recipe or from its defaults, for a stage that is run alone.

    Args:
        section: its class.
        name: its key in a recipe; overrides are written as for a whole recipe, `name.key=value`.
        recipe: as for `load_recipe`, or None for the defaults.
        overrides: as for `load_recipe`.

    Raises:
        ConfigError: as `load_recipe`, or an override belongs to another section.

    """
    values = {} if recipe is None else read_values(recipe, (), shipped_recipes(), what="recipe")
    for override in overrides:
        _refuse_other_section(override, name, section)
        _apply_override(values, override)
    return validate(section, values.get(name, {}), where=f"section {name}")


def override_section(section: SectionT, name: str, overrides: Sequence[str]) -> SectionT:
    """Return a section with overrides laid over it, written `name.key=value`.

    Raises:
        ConfigError: as `load_section`.

    """
    values = {name: section.model_dump(mode="json")}
    for override in overrides:
        _refuse_other_section(override, name, type(section))
        _apply_override(values, override)
    return validate(type(section), values[name], where=f"section {name}")


def _refuse_other_section(override: str, name: str, section: type[BaseModel]) -> None:
    if override.startswith(f"{name}."):
        return
    key, _, value = override.partition("=")
    meant = f"{name}.KEY=VALUE with KEY one of {', '.join(section.model_fields)}"
    if near := _similar(key, section.model_fields):
        meant = f"{name}.{near}={value or 'VALUE'}"
    raise ConfigError(
        f"override {override!r}: this command reads the section {name!r} only; write {meant}"
    )


ABBREVIATED = {
    "lr": "learning_rate", "epochs": "num_train_epochs", "bs": "global_batch_size",
    "batch_size": "global_batch_size", "steps": "max_steps", "temp": "temperature",
    "max_new_tokens": "max_tokens", "num_samples": "n", "num_return_sequences": "n",
}  # fmt: skip
"""What other tools, and people in a hurry, call some keys."""


def _similar(key: str, known: Iterable[str]) -> str | None:
    """Return the key that was probably meant."""
    name, known = ABBREVIATED.get(key, key), list(known)
    near = [name] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return near[0] if near else None


def _in_a_section(key: str) -> str | None:
    """Return the dotted key of a recipe that was probably meant by a key without its section."""
    for section in ("train", "generate", "evaluate", "grade", "curate", "model", "loop"):
        kind: Any = Recipe.model_fields[section].annotation
        name = ABBREVIATED.get(key, key)
        if name in kind.model_fields:
            return f"{section}.{name}"
    return None


def dump_recipe(recipe: Section) -> str:
    """Return a resolved recipe or study as YAML, every default written out."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    return TypeAdapter(Recipe).json_schema()


def read_values(
    source: str | Path,
    overrides: Sequence[str],
    shipped: Mapping[str, Traversable],
    *,
    what: str,
) -> dict[str, Any]:
    """Read YAML and lay dotted overrides over it.

    Args:
        source: name of a shipped file, or path of another.
        overrides: `key.key=value`, the value in YAML.
        shipped: files in the package by name.
        what: what they are, for messages.

    Raises:
        ConfigError: no such file, broken YAML, or an override that does not fit.

    """
    path = Path(source)
    file: Traversable
    if str(source) in shipped:
        file = shipped[str(source)]
    elif path.is_file():
        file = path
    else:
        near = difflib.get_close_matches(str(source), shipped, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"no {what} {str(source)!r}: it is neither a file nor one that is shipped "
            f"({', '.join(shipped)}).{hint}"
        )
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        hint = " (YAML is indented with spaces, not with tabs)" if "'\\t'" in str(error) else ""
        raise ConfigError(f"{source} is not YAML{hint}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} holds {type(values).__name__}, expected a mapping of sections such as "
            "`task:` and `train:`"
        )
    _refuse_both_names(values, str(source))
    for override in overrides:
        _apply_override(values, override)
    return values


def _refuse_both_names(values: Any, where: str) -> None:
    """Refuse a section `train` that says the same under an old name and a new one."""
    if not isinstance(values, dict):
        return
    train = values.get("train")
    for old, new in RENAMED.items():
        if isinstance(train, dict) and {old, new} <= train.keys():
            raise ConfigError(
                f"{where}: train has both {old} and {new}, which are one key: leave out {old}, "
                "its old name"
            )
    for section in values.values():
        _refuse_both_names(section, where)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: PyYAML reads 1e-6 as text, since YAML 1.1 asks for a dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(
            f"override {override!r} has no value: write it as key.key=value, "
            "for example train.learning_rate=1e-6"
        )
    *parents, last = dotted.split(".")
    section = values
    for key in parents:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {key!r} holds a value, not a section")
    try:
        section[last] = yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error


def validate(section: type[SectionT], values: Any, *, where: str) -> SectionT:
    """Build a section, or raise a ConfigError that names each wrong key and what it should be."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(section, problem) for problem in error.errors())
        raise ConfigError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from None


_MEMBER = re.compile(r"constrained-\w+$|literal\[|function-\w+\[")


def _explain(section: type[BaseModel], problem: Any) -> str:
    # Of a union pydantic names the member that did not fit too: `constrained-float`.
    location = [part for part in map(str, problem["loc"]) if not _MEMBER.match(part)]
    # Of a task pydantic names the kind as well: `task.gsm8k.split`.
    shown = location[:1] + location[2:] if len(location) > 2 and location[0] == "task" else location
    key = ".".join(shown)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(section, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        meant = ABBREVIATED.get(location[-1])
        if len(location) == 1 and section is Recipe:
            near = [dotted] if (dotted := _in_a_section(key)) else near
        elif meant in known:
            near = [str(meant)]
        hint = f"known keys: {', '.join(known)}"
        if near:
            hint = f"did you mean {'.'.join((*shown[:-1], near[0]))!r}?"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "union_tag_invalid":
        known = re.findall(r"'(\w+)'", problem["ctx"]["expected_tags"])
        near = difflib.get_close_matches(problem["ctx"]["tag"], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        kind = problem["ctx"]["discriminator"].strip("'")
        return f"{key}: unknown {kind} {problem['ctx']['tag']!r}; {hint}"
    if problem["type"] == "union_tag_not_found":
        kind = problem["ctx"]["discriminator"].strip("'")
        return f"{key}: no key {kind!r}, which says what kind it is (found {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    return f"{key}: {message} (found {problem['input']!r})" if key else message


def _fields_at(annotation: Any, path: Sequence[str]) -> list[str]:
    """Return the keys of the section that a validation error's path points into."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return list(annotation.model_fields)
        field = annotation.model_fields.get(path[0])
        return _fields_at(field.annotation, path[1:]) if field else []
    members = get_args(annotation)
    if get_origin(annotation) is dict:
        return _fields_at(members[1], path[1:])
    if get_origin(annotation) is tuple:
        return _fields_at(members[0], path[1:])
    for member in members:
        tag = _tag_of(member)
        if tag is None and member is not type(None):
            return _fields_at(member, path)
        if path and tag is not None and get_args(tag.annotation) == (path[0],):
            return _fields_at(member, path[1:])
    return []


def _tag_of(member: Any) -> Any:
    """Return the field that tells a section from the others of its union, if there is one."""
    fields = getattr(member, "model_fields", {})
    return next((fields[name] for name in ("name", "rule") if name in fields), None)
