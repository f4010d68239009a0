"""What models/Base.py promises to the author of a method."""

import sys
from pathlib import Path

import pytest
import torch

from models.Base import Method
from models.PEFT import PEFT
from models.SEQ import SEQ
from tests import tiny
from tests.fixtures.masked import Masked
from utils.distributed.modes import ALL, WHOLE_GRADIENTS, WHOLE_WEIGHTS
from utils.errors import UserError
from utils.factory import load_method
from utils.run import checkpoint
from utils.run.fit import fit

OUTSIDE = '''
from pydantic import Field

from models.Base import Method
from models.SEQ import SEQ
from utils.config import Float, OptionGroup


class ScaledOptions(OptionGroup):
    """Scaled."""

    Scaled_factor: Float = Field(2, description="Factor of the loss.")


class Scaled(Method):
    """Scales the loss."""

    Options = ScaledOptions
    options: ScaledOptions

    def loss(self, model, batch, task):
        return {name: self.options.Scaled_factor * term for name, term in super().loss(model, batch, task).items()}


class Other(SEQ):
    class Options(OptionGroup):
        """Other."""

        unprefixed: Float = Field(2, description="A name without the prefix.")


class EWC(SEQ):
    """The name of a method of the project."""


nothing = 1
'''


def test_where_a_method_runs_is_derived_from_the_hooks_it_overrides():
    class Projects(Method):
        def on_gradients(self, task): ...

    class ProjectsToo(SEQ):  # which runs everywhere
        def on_gradients(self, task): ...

    class Penalises(SEQ):
        def loss(self, model, batch, task): ...

    class Restores(Penalises):
        def on_update(self, before, task): ...

    class Mixed(Restores, ProjectsToo): ...

    class Declares(SEQ):
        parallel = ALL

        def loss(self, model, batch, task): ...

    class Prepares(SEQ):
        def before_task(self, task): ...

    assert Projects.parallel == ProjectsToo.parallel == Mixed.parallel == WHOLE_GRADIENTS
    assert Penalises.parallel == Restores.parallel == WHOLE_WEIGHTS
    assert Declares.parallel == Prepares.parallel == ALL
    assert Method.parallel == WHOLE_WEIGHTS and SEQ.parallel == ALL


class MaskedGradients(Masked):
    """Only gradients are masked."""

    is_restoring = False

    def on_gradients(self, task):
        for name, w in self.named().items():
            if task.index and w.grad is not None:
                w.grad[self.fixed(name)] = 0


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", [Masked, MaskedGradients])
def test_entries_restored_after_the_update_stay_bit_for_bit_under_adamw(kind, parts):
    config = tiny.make_config(weight_decay=0.1, keep_optimizer_state=True, gradient_accumulation_steps=parts)
    method = tiny.make_method(tiny.make_session(config), method_class=kind)
    moments = fit(method, tiny.make_task(0), method.session)  # momentum of entries that are fixed later
    first = tiny.snapshot(method)
    fit(method, tiny.make_task(1), method.session, moments=moments)
    moved = {name: w != first[name] for name, w in tiny.snapshot(method).items()}
    assert any(changes[~method.fixed(name)].any() for name, changes in moved.items())
    assert kind.is_restoring == (not any(changes[method.fixed(name)].any() for name, changes in moved.items()))


def test_weights_before_the_update_are_those_of_the_step():
    seen = []

    class Watching(SEQ):
        def on_gradients(self, task):
            self.kept = tiny.snapshot(self)

        def on_update(self, before, task):
            seen.append(tiny.same(before, self.kept) and not tiny.same(before, tiny.snapshot(self)))

    method = tiny.make_method(tiny.make_session(tiny.make_config()), method_class=Watching)
    fit(method, tiny.make_task(0), method.session)
    assert seen == [True] * 3


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in inner for tensor in tensors(part)]


@pytest.mark.parametrize("name", ["EWC", "LwF", "CLSER", "TaskVector", "SLAO", "InfLoRA", "GradientProjection"])
def test_state_comes_back_on_the_device_of_the_model(name):
    options = {"PEFT_type": "LoRA"} if "LoRA" in name or name == "SLAO" else {}
    merge = {"TaskVector_merge": "magmax"} if name == "TaskVector" else {}
    method = tiny.make_method(tiny.make_session(tiny.make_config(name, **options)), **merge)
    for task in map(tiny.make_task, range(2)):
        method.before_task(task)
        fit(method, task, method.session, limit=1)
        method.after_task(task)
    state = checkpoint.unpack(*checkpoint.pack(method.state_dict()))
    method.model.to("meta")
    method.load_state_dict(state)
    found = [tensor for name in method.state for tensor in tensors(getattr(method, name))]
    assert found and {tensor.device.type for tensor in found} == {"meta"}


def test_offloaded_state_comes_back_on_the_cpu():
    method = tiny.make_method(tiny.make_session(tiny.make_config("EWC")), EWC_offload=True)
    method.model.to("meta")
    method.load_state_dict({"past": {"w": (torch.ones(2), torch.ones(2), torch.ones(()))}})
    assert {tensor.device.type for tensor in method.past["w"]} == {"cpu"}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A module outside the project, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("outside_methods.py").write_text(OUTSIDE, encoding="utf-8")
    Path("needs_more.py").write_text("import a_module_that_is_absent\n", encoding="utf-8")
    yield
    sys.modules.pop("outside_methods", None)


def test_a_method_outside_the_project_runs_and_resumes(outside, tmp_path):
    from utils.dataset import save_stream
    from utils.options.checks import check
    from utils.options.parse import resolve
    from utils.run import launch

    save_stream(tiny.micro_stream(2), tmp_path / "data")
    words = ["--cfg", "None", "--dataset", "micro", "--dataset_path", str(tmp_path / "data"), "--training_epochs", "1"]
    words += ["--dump_path", str(tmp_path / "runs"), "--backbone", tiny.backbone_folder(), "--Scaled_factor", "3"]
    options = resolve([*words, "--method", "outside_methods:Scaled"])
    assert options.method_options.Scaled_factor == 3
    tiny.forget_processes()
    results = launch.launch(check(options), None)
    (folder,) = (tmp_path / "runs").glob("*Scaled/*")
    assert results["method"] == "Scaled" and results["R"][1][1] is not None
    again = resolve(["--cfg", str(folder / "config.yaml")])
    assert again.config.method == "outside_methods:Scaled" and again.method_options == options.method_options
    (folder / "results.json").unlink()
    assert launch.launch(check(again), folder)["R"] == results["R"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("absent_module:Scaled", "'absent_module:Scaled' cannot be imported: No module named 'absent_module'"),
        ("needs_more:Scaled", "No module named 'a_module_that_is_absent'"),
        (":Scaled", "cannot be imported"),
        ("outside_methods:Absent", "module outside_methods has no class 'Absent'"),
        ("outside_methods:nothing", "'outside_methods:nothing' is not a subclass of Method"),
        ("outside_methods:Float", "is not a subclass of Method"),
        ("outside_methods:Other", "option unprefixed of 'outside_methods:Other' must begin with Other_"),
        ("outside_methods:EWC", "has the name of a method of this project"),
    ],
)
def test_what_is_wrong_with_a_method_outside_is_one_sentence(outside, name, problem):
    with pytest.raises(UserError, match=problem):
        load_method(name)


def test_nothing_shadows_a_declaration():
    for name in tiny.METHODS:
        kind = load_method(name)
        for declared in (
            "trains",
            "parallel",
            "heads",
            "scenarios",
            "backbones",
            "needs",
            "excludes",
            "loss_on_prompts",
        ):
            assert not isinstance(getattr(kind, declared), property), f"{name}.{declared}"
        assert f"{name}Options" == kind.Options.__name__ or not kind.Options.model_fields, name
    assert PEFT.trains is True
