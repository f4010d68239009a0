"""Rules of the source files: which file may import which, step an optimizer, read a pickle, and how long it may be."""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from models import METHODS
from utils.options.parse import read_yaml

ROOT = Path(__file__).parents[1]
# Imports point down: a file may import from rows further up and from its folder. A folder is one row.
# `models` itself is the table of methods.
LAYERS = [
    ["utils", "models", "utils.errors", "utils.seed", "utils.metric", "utils.progress", "utils.groups"],
    ["utils.storage", "utils.config"],
    ["utils.scoring", "utils.dataset"],
    ["utils.prompt"],
    ["utils.preprocess", "utils.dataloader", "utils.buffer", "utils.logger", "utils.optimizer"],
    ["utils.dataformat_preprocess", "utils.model"],
    ["utils.quantization", "utils.penalty"],
    ["utils.backbone", "utils.classifier"],
    ["utils.session", "utils.wrapmodel"],
    ["utils.distributed"],
    ["models.common"],
    ["models.Base"],
    ["models.METHOD"],
    ["utils.factory", "utils.report", "utils.options.stream_view"],
    ["utils.evaluation", "utils.probing"],
    ["utils.drift", "utils.general", "utils.surprise", "utils.estimate"],
    ["utils.options"],
    ["utils.run"],
    ["utils.jobs"],
    ["main_CL", "utils.sweep", "utils.download_backbones", "utils.diagnose", "utils.pretrain"],
    ["utils.tune"],
    ["utils.study"],
]
FAMILIES = {  # methods that extend another one
    "LAMOL_KD": "LAMOL", "L2KD": "LAMOL", "LFPT5": "LAMOL_KD", "PCLL": "LAMOL_KD", "AdapterCL": "PEFT",
    "AGEM": "GEM", "OLoRA": "PEFT", "InfLoRA": "PEFT", "GainLoRA": "InfLoRA",
}  # fmt: skip
STEPPERS = (
    "utils/run/fit.py",
    *(f"utils/distributed/{mode}.py" for mode in ("replicated", "fsdp", "zero")),  # for the loop
    "utils/pretrain/__main__.py",
    "utils/run/plan/memory.py",  # without values
)
PICKLE_READER = "utils/preprocess/shared/safe_pickle.py"  # raw files of others: plain values only, no code
PICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNNERS = ("torch.load", "torch.save", "np.load", "numpy.load", "eval", "exec", "yaml.unsafe_load")
DEFINITIONS = (
    ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.AugAssign | ast.For
)
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


def offences(rule: Callable[[str], Iterator[str]], *excepted: str) -> str:
    """What breaks a rule, one line per offence, in all files together; empty if nothing does."""
    return "\n".join(f"{file}, {offence}" for file in FILES if file not in excepted for offence in rule(file))


def calls(file: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, ast.Call))


def imports_upwards(file: str) -> Iterator[str]:
    own = module(file)
    if layer(own) < 0:
        yield "is in no layer; add it to LAYERS of tests/test_architecture.py"
    for other in sorted(imports(file) - {own}):
        same_package = own.split(".")[:2] == other.split(".")[:2]
        family = own == f"models.{own[7:]}" and FAMILIES.get(own[7:]) == other[7:] and other.startswith("models.")
        down = 0 <= layer(other) < layer(own)
        if other.startswith("tests") or layer(other) < 0 or not (down or same_package or family):
            yield f"layer {layer(own)}, imports {other}, layer {layer(other)}"


def test_imports_point_down():
    assert not offences(imports_upwards)


def test_every_layer_names_modules_that_exist():
    known = {module(file) for file in FILES} | {"models.METHOD"}
    assert {name for names in LAYERS for name in names} <= known
    assert sum(map(len, LAYERS)) == len({name for names in LAYERS for name in names})


def steps(file: str) -> Iterator[str]:
    for node in calls(file):
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("step", "zero_grad", "backward"):
            yield f"line {node.lineno}: {node.func.attr}()"


def test_only_the_loop_steps_an_optimizer():
    assert not offences(steps, *STEPPERS)


def unwraps(file: str) -> Iterator[str]:
    for node in ast.walk(tree(file)):
        reaches = isinstance(node, ast.Attribute) and node.attr in ("module", "cuda", "unwrap_model")
        if (reaches and ast.unparse(node) != "torch.cuda") or (
            isinstance(node, ast.Constant) and node.value == "module"
        ):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_nobody_reaches_around_the_wrapper():
    assert not offences(unwraps)


def unpickles(file: str) -> Iterator[str]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if names & PICKLERS and file != PICKLE_READER:
                yield f"line {node.lineno}: {ast.unparse(node)}"
    for node in calls(file):
        trusts = [k for k in node.keywords if k.arg == "trust_remote_code" and ast.unparse(k.value) != "False"]
        if trusts or ast.unparse(node.func) in RUNNERS:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_nothing_is_pickled_and_no_code_is_run():
    assert not offences(unpickles)


def opens_without_encoding(file: str) -> Iterator[str]:
    for node in calls(file):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in ("open", "read_text", "write_text") or ast.unparse(node.func) in ("os.open", "write_text"):
            continue
        words = [ast.unparse(argument) for argument in node.args] + [str(k.arg) for k in node.keywords]
        binary = any(word.startswith("'b'") or word in ("'rb'", "'wb'") for word in words)
        if not binary and "encoding" not in words:
            yield f"line {node.lineno}: {name} without encoding"


def test_texts_are_read_and_written_as_utf_8():
    assert not offences(opens_without_encoding)


def too_long(file: str) -> Iterator[str]:
    lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
    if lines > LONGEST_FILE:
        yield f"{lines} lines"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LONGEST_FUNCTION:
            yield f"{node.name}: {node.end_lineno - node.lineno + 1} lines"


def test_sizes():
    assert not offences(too_long)
    for folder in {(ROOT / file).parent for file in FILES} - {ROOT, *(ROOT / name for name in FULLER)}:
        entries = [path for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__")]
        assert len(entries) <= FULLEST_FOLDER, f"{folder}: {len(entries)} entries"


SLOW = {"scipy", "sklearn", "matplotlib", "peft", "datasets", "pandas", "wandb", "deepspeed"}  # half a second and more


def imports_slowly(file: str) -> Iterator[str]:
    """Libraries that few runs use are imported where they are used, so that a run starts in seconds."""
    for node in tree(file).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"line {node.lineno}: {name}" for name in names if name.split(".")[0] in SLOW)


def test_slow_libraries_are_imported_where_they_are_used():
    assert not offences(imports_slowly, "utils/model/bottleneck.py")  # which is imported with peft


def acts_on_import(file: str) -> Iterator[str]:
    """At the top of a file there are names, tables and definitions; loops only fill tables."""
    for node in tree(file).body:
        main = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        resolver = call and ast.unparse(node.value.func).endswith(".add_implicit_resolver")
        if not (isinstance(node, DEFINITIONS) or main or text or resolver):
            yield f"line {node.lineno}: {ast.unparse(node)[:60]}"


def test_importing_a_file_does_nothing():
    assert not offences(acts_on_import)


def test_a_method_has_its_file_and_a_config():
    configs = [path for path in (ROOT / "config").rglob("*.yaml") if "accelerate" not in path.parts]
    configured = {read_yaml(path).get("method") for path in configs}
    for name, module_name in METHODS.items():
        assert module_name == f"models.{name}" and (ROOT / f"models/{name}.py").is_file(), name
        assert name in configured, f"no YAML in config/ has method: {name}"
