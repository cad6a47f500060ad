"""What holds for the package as a whole: what imports what, what is public, what is light."""

import ast
import importlib
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import kopt

PACKAGE = pathlib.Path(kopt.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
STUB = ast.parse((PACKAGE / "__init__.pyi").read_text())
PUBLIC = {alias.asname for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names}

# Imports point down: from a later line to an earlier one, never sideways.
LEVELS = [
    {"_checks", "_keras", "_forks", "_locks", "_replaced"},
    {"_tables"},
    {"_backend"},
    {"_traced"},
    {"math", "schedules"},
    {"penalties", "constraints"},
    {"optimizers", "layers", "learning_rate_finder", "callbacks"},
    {"noise"},
    {"distribute"},
    {"training"},
    {"objectives"},
    {"estimators"},
    {"search"},
    {"testing", "__main__"},
]
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}
TENSORFLOW_ALLOWED = {"_backend", "_traced", "distribute", "training", "testing"}


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(path):
    """Every absolute dotted name that a module imports, inside functions too."""
    package = ("kopt", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def distribution_of(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = part_of(path)
    if part == "__init__":
        return
    for name in imported_names(path):
        top, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        if top != "kopt" or imported == part:
            continue
        below = part in LEVELS[-1] if imported not in LEVEL_OF else LEVEL_OF[imported] < LEVEL_OF[part]
        assert below, f"{part} imports {name}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_frameworks_are_named_only_where_they_may_be(path):
    names = set(imported_names(path))
    if part_of(path) not in TENSORFLOW_ALLOWED:
        assert not [name for name in names if re.match(r"tensorflow\b", name)]
    if part_of(path) != "_keras":
        assert not [name for name in names if name.startswith("keras.src")]


def test_every_part_has_a_level():
    assert {part_of(path) for path in MODULES} - {"__init__"} <= set(LEVEL_OF)


def test_every_third_party_import_is_a_dependency_or_brought_by_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {distribution_of(line) for line in project["dependencies"]}
    brought = {distribution_of(line) for name in required for line in importlib.metadata.requires(name) or ()}
    allowed = (
        required | brought | {"tensorflow", "jax", "pandas", "matplotlib", "optuna", "tensorboard"}
    )  # an extra, or the reader's choice of backend
    installed = importlib.metadata.packages_distributions()
    imported = {name.partition(".")[0] for path in MODULES for name in imported_names(path)}
    third_party = imported - sys.stdlib_module_names - {"kopt"}
    assert not {name for name in third_party if allowed.isdisjoint(map(distribution_of, installed.get(name, [name])))}


def test_public_names_are_those_of_the_stub():
    assert set(kopt.__all__) == PUBLIC
    assert set(dir(kopt)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_loads(name):
    assert getattr(kopt, name).__doc__


@pytest.mark.parametrize(
    "package", ["optimizers", "schedules", "layers", "penalties", "objectives", "estimators", "search", "testing"]
)
def test_all_is_sorted_and_loads(package):
    module = importlib.import_module(f"kopt.{package}")
    assert sorted(module.__all__, key=str.casefold) == sorted(set(module.__all__), key=str.casefold)
    assert all(getattr(module, name).__module__.startswith("kopt") for name in module.__all__)


def test_every_optimizer_of_the_package_is_public():
    from kopt import optimizers

    assert set(optimizers.__all__) <= PUBLIC


def test_private_names_of_keras_exist():
    import keras

    from kopt import _keras

    for cls, names in _keras.PRIVATE.items():
        if cls is keras.optimizers.Optimizer:
            instance = cls(0.1, use_ema=True, gradient_accumulation_steps=2)
            instance.build([keras.Variable(1.0)])
        elif cls is keras.Variable:
            instance = cls(1.0)
        elif issubclass(cls, keras.Model) and cls is not keras.Model:
            inputs = keras.Input((1,))
            instance = cls(inputs, keras.layers.Dense(1)(inputs))
        else:
            instance = cls()
        assert not [name for name in names if not hasattr(instance, name)]


def test_import_is_light():
    heavy = run_python("import sys, kopt; dir(kopt); print(*sys.modules)").split()
    assert not {"tensorflow", "keras", "sklearn", "numpy", "keras_tuner"} & set(heavy)


def test_constructing_an_estimator_imports_no_keras():
    code = (
        "import sys, kopt\n"
        "kopt.TunerSearchCV(kopt.KerasClassifier(), {'epochs': [1]})\n"
        "kopt.KerasRegressor()\n"
        "print(*sys.modules)"
    )
    assert not {"tensorflow", "keras", "keras_tuner"} & set(run_python(code).split())


@pytest.mark.parametrize(
    "name",
    ["Model", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SAM", "testing"))],
)
def test_a_name_may_be_the_first_that_is_used(name):
    assert run_python(f"import kopt; print(kopt.{name} is not None)") == "True\n"


def test_floatx_may_be_set_after_the_import():
    """To make a layer or to ask for Keras's dtype policy settles it."""
    code = (
        "import keras, kopt; kopt.Model, kopt.minimize, kopt.fit_population, kopt.KerasClassifier, kopt.layers.DropPath"
    )
    code += "\nkeras.config.set_floatx('float64'); print(keras.layers.Dense(1).dtype)"
    assert run_python(code).strip() == "float64"


def test_version_is_that_of_the_installed_package():
    assert kopt.__version__ == importlib.metadata.version("kopt")
