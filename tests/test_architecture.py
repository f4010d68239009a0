"""The shape of the project: what may import what, who may step, what nobody does."""

import ast
from functools import cache
from pathlib import Path

import pytest

from models import METHODS
from utils.options.parse import read_yaml

ROOT = Path(__file__).parents[1]
# Imports point down: a file may import files of rows further up, and of its own folder. A folder is one row.
LAYERS = [
    ["utils", "models", "utils.errors", "utils.seed", "utils.metric"],  # models: the table of methods
    ["utils.storage", "utils.config"],
    ["utils.scoring", "utils.dataset"],
    ["utils.prompt"],
    ["utils.preprocess", "utils.dataloader", "utils.buffer", "utils.logger", "utils.optimizer"],
    ["utils.dataformat_preprocess", "utils.model"],
    ["utils.backbone", "utils.classifier"],
    ["utils.session", "utils.wrapmodel"],
    ["utils.distributed"],
    ["models.common"],
    ["models.Base"],
    ["models.METHOD"],
    ["utils.factory", "utils.report"],
    ["utils.evaluation", "utils.probing"],
    ["utils.options"],
    ["utils.run"],
    ["main_CL", "utils.sweep", "utils.download_backbones", "utils.diagnose", "utils.pretrain"],
]
FAMILIES = {  # methods that extend another one
    "LAMOL_KD": "LAMOL", "L2KD": "LAMOL", "LFPT5": "LAMOL_KD", "PCLL": "LAMOL_KD", "AdapterCL": "PEFT",
    "AGEM": "GEM", "OLoRA": "PEFT", "InfLoRA": "PEFT",
}  # fmt: skip
STEPPERS = ("utils/run/fit.py", "utils/pretrain/__main__.py")
PICKLE_READER = "utils/preprocess/shared/safe_pickle.py"  # raw files of others: plain values only, no code
LONGEST_FILE, LONGEST_FUNCTION, FULLEST_FOLDER = 400, 60, 12  # lines, lines, entries
# The customer fixed the files of utils; a method and a data set each have a file.
FULLER = ("utils", "models", "utils/preprocess")
FILES = sorted(p.relative_to(ROOT).as_posix() for top in ("utils", "models") for p in (ROOT / top).rglob("*.py"))
FILES.append("main_CL.py")


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(file: str) -> set[str]:
    """Our own modules that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}, line {node.lineno}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = inner & {module(other) for other in FILES}
            found |= known if known and known == inner else known | {node.module or ""}
    return {name for name in found if name.split(".")[0] in ("utils", "models", "main_CL", "tests")}


def layer(name: str) -> int:
    """Row of a module in LAYERS, by its own name or that of the folder it is in; -1: none."""
    if name.startswith("models.") and name != "models.Base" and not name.startswith("models.common"):
        name = "models.METHOD"
    while name:
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
        name = name.rpartition(".")[0] if name.count(".") > 1 else ""
    return -1


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file):
    own = module(file)
    assert layer(own) >= 0, f"{own} is in no layer; put it into LAYERS of tests/test_architecture.py"
    for other in sorted(imports(file) - {own}):
        assert not other.startswith("tests"), f"{own} imports {other}"
        assert layer(other) >= 0, f"{other}, imported by {own}, is in no layer"
        same_package = own.split(".")[:2] == other.split(".")[:2]
        family = own == f"models.{own[7:]}" and FAMILIES.get(own[7:]) == other[7:] and other.startswith("models.")
        down = layer(other) < layer(own)
        assert down or same_package or family, f"{own} (layer {layer(own)}) imports {other} (layer {layer(other)})"


def test_every_layer_names_modules_that_exist():
    known = {module(file) for file in FILES} | {"models.METHOD"}
    assert {name for names in LAYERS for name in names} <= known
    assert sum(map(len, LAYERS)) == len({name for names in LAYERS for name in names})


@pytest.mark.parametrize("file", [f for f in FILES if f not in STEPPERS])
def test_only_the_loop_steps_an_optimizer(file):
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in ("step", "zero_grad", "backward"), f"{file}, line {node.lineno}"


@pytest.mark.parametrize("file", FILES)
def test_nobody_reaches_around_the_wrapper(file):
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            assert node.attr not in ("module", "cuda", "unwrap_model") or name == "torch.cuda", f"{file}: {name}"
        if isinstance(node, ast.Constant) and node.value == "module":
            raise AssertionError(f"{file}, line {node.lineno}: 'module'")


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_pickled_and_no_code_is_run(file):
    for node in ast.walk(tree(file)):
        where = f"{file}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
            bad = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & set(names)
            assert not bad or file == PICKLE_READER, where
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            assert text not in (
                "torch.load",
                "torch.save",
                "np.load",
                "numpy.load",
                "eval",
                "exec",
                "yaml.unsafe_load",
            ), where
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code":
                    assert isinstance(keyword.value, ast.Constant) and keyword.value.value is False, where


@pytest.mark.parametrize("file", FILES)
def test_texts_are_read_and_written_as_utf_8(file):
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("open", "read_text", "write_text") and ast.unparse(node.func) not in ("os.open", "write_text"):
                words = [ast.unparse(argument) for argument in node.args] + [k.arg for k in node.keywords]
                binary = any("b'" in word for word in words if word and word.startswith("'"))
                binary = binary or any(word in ("'rb'", "'wb'") for word in words)
                assert binary or "encoding" in words, f"{file}, line {node.lineno}: {name} without encoding"


def test_sizes():
    """Files, functions and folders that one can take in."""
    for file in FILES:
        assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, file
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{file}: {node.name}"
    for folder in {(ROOT / file).parent for file in FILES} - {ROOT, *(ROOT / name for name in FULLER)}:
        entries = [path for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__")]
        assert len(entries) <= FULLEST_FOLDER, f"{folder}: {len(entries)} entries"


@pytest.mark.parametrize("file", FILES)
def test_importing_a_file_does_nothing(file):
    """At the top of a file there are names, tables and definitions; loops only fill tables."""
    allowed = (
        ast.Import
        | ast.ImportFrom
        | ast.FunctionDef
        | ast.ClassDef
        | ast.Assign
        | ast.AnnAssign
        | ast.AugAssign
        | ast.For
    )
    for node in tree(file).body:
        main = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.Call)
        assert isinstance(node, allowed) or main or call, f"{file}, line {node.lineno}"
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            assert ast.unparse(node.value.func).endswith(".add_implicit_resolver"), f"{file}, line {node.lineno}"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_file_its_config_and_its_line_in_the_readme(name):
    assert METHODS[name] == f"models.{name}"
    assert (ROOT / f"models/{name}.py").is_file()
    configs = [path for path in (ROOT / "config").rglob("*.yaml") if "accelerate" not in path.parts]
    assert any(read_yaml(path).get("method") == name for path in configs), f"no YAML in config/ has method: {name}"
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.xfail("README.md is not written yet")
    assert any(name in line for line in readme.read_text(encoding="utf-8").splitlines())
