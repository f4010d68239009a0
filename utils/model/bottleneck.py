"""Bottleneck adapters, which peft does not have, registered with peft as a tuner.

One adapter follows the feed-forward part F of each block (Pfeiffer et al., EACL 2021; Houlsby et al., ICML 2019, add
one after attention as well). With the block's width d and the bottleneck's size s,

    h = F(x),   y = h + U relu(D h + a) + b,   D (s, d), U (d, s)

U and b start at 0, so that a fresh adapter changes nothing. Importing this file registers the tuner; after that
`PeftModel.from_pretrained` loads saved adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import relu
from transformers.pytorch_utils import Conv1D

from utils.model.architecture import Model
from utils.model.freeze import blocks
from utils.model.targets import mixtures

KIND = "BOTTLENECK"  # in adapter_config.json


@dataclass
class BottleneckConfig(PeftConfig):
    """The configuration that peft saves in adapter_config.json."""

    size: int = 50
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Set the type of the adapter."""
        super().__post_init__()
        self.peft_type = KIND


class Bottleneck(nn.Module, BaseTunerLayer):
    """The last linear layer of a block, followed by adapters."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: nn.Module, name: str, size: int):
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self._disable_adapters, self.merged_adapters = False, []  # of peft: its context, and merging (impossible here)
        self._active_adapter = name
        self.add(name, size)

    def add(self, name: str, size: int) -> None:
        """Add a fresh adapter."""
        d = width(self.get_base_layer())
        self.bottleneck_down[name], self.bottleneck_up[name] = nn.Linear(d, size), nn.Linear(size, d)
        for w in self.bottleneck_up[name].parameters():
            nn.init.zeros_(w)
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (..., D_in), result (..., d)."""
        h = self.base_layer(x)
        chosen = [] if self.disable_adapters else [n for n in self.active_adapters if n in self.bottleneck_down]
        return h + sum(self._change(h, name) for name in chosen) if chosen else h

    def _change(self, h: Tensor, name: str) -> Tensor:
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        return up(relu(down(h.to(down.get_parameter("weight").dtype)))).to(h.dtype)


class BottleneckModel(BaseTuner):
    """The wrapper of peft around a model."""

    prefix = "bottleneck_"
    tuner_layer_cls = Bottleneck
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012 (peft's declaration); no table: `places` looks

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        size = cast(BottleneckConfig, peft_config).size
        if isinstance(target, Bottleneck):
            target.add(adapter_name, size)
        else:
            self._replace_module(parent, target_name, Bottleneck(target, adapter_name, size), target)


def places(model: Model) -> list[str]:
    """Names of the layers that adapters follow: the last linear layer of each block.

    In every architecture the feed-forward part comes last in a block and ends with a linear layer of the model's width.

    Raises:
        ValueError: a block does not end in this way, as a mixture of experts does not.
    """
    if mixtures(model):
        raise ValueError("its feed-forward part is a mixture of experts, which ends with no linear layer")
    names = {module: name for name, module in model.named_modules()}
    found = [[module for module in block.modules() if width(module)] for block in blocks(model)]
    size = model.config.get_text_config().hidden_size
    if not all(linear and width(linear[-1]) == size for linear in found):
        raise ValueError(f"expected blocks that end with a linear layer of width {size}")
    return [names[linear[-1]] for linear in found]


def width(module: nn.Module) -> int:
    """Outputs of a linear layer; 0: the module is not linear."""
    if isinstance(module, Conv1D):  # GPT-2's
        return module.nf
    return module.out_features if isinstance(module, nn.Linear) else 0


# The keys of these tables are an enum of peft, which cannot be extended; it compares equal to texts.
_ENTRIES: tuple[tuple[dict[Any, Any], Any], ...] = (
    (PEFT_TYPE_TO_CONFIG_MAPPING, BottleneckConfig),
    (PEFT_TYPE_TO_TUNER_MAPPING, BottleneckModel),
    (PEFT_TYPE_TO_PREFIX_MAPPING, BottleneckModel.prefix),
)
for _table, _entry in _ENTRIES:
    _table[KIND] = _entry
