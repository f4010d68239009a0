"""Training, freezing, adapters and replay: settings of any method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from utils.groups.base import LR_SEARCH, Float, Int, OptionGroup, search


class TrainOptions(OptionGroup):
    """Training."""

    method: str = Field(
        "SEQ", description="Continual-learning method: a file in models/, or package.module:Class outside the project."
    )
    training_epochs: Int = Field(10, ge=0, description="Epochs of each task.")
    training_epochs_first_task: Int | None = Field(
        None, ge=0, description="Epochs of the first task; None: training_epochs."
    )
    training_epochs_list: tuple[Annotated[Int, Field(ge=0)], ...] | None = Field(
        None, description="Epochs per task; replaces the two options above."
    )
    batch_size: Int = Field(32, ge=1, description="Examples per optimizer step, over all processes.")
    group_by_length: bool = Field(
        False,
        description="Batches hold examples of similar length: less padding, but an epoch is no longer one uniform "
        "shuffle, which changes the results.",
    )
    padding_free: bool = Field(
        False,
        description="Training steps without padding: several rows of a batch in one sequence, in which each row reads "
        "only itself. Sums are rounded differently, and dropout draws other masks.",
    )
    gradient_accumulation_steps: Int = Field(
        1, ge=1, description="Micro-batches into which each process splits its share of a batch, to save memory."
    )
    gradient_checkpointing: bool = Field(
        False, description="Store only the inputs of layers and recompute activations in the backward pass."
    )
    torch_compile: bool = Field(
        False,
        description="Compile the transformer blocks for training steps: the first of them take a minute or more, and "
        "sums are rounded differently.",
    )
    lr: Float = Field(1e-5, ge=0, description="Learning rate of AdamW.", json_schema_extra=LR_SEARCH)
    lr_list: tuple[Float, ...] | None = Field(None, description="Learning rate per task; replaces lr.")
    weight_decay: Float = Field(5e-4, ge=0, description="Weight decay of AdamW.")
    classifier_lr: Float = Field(1e-3, ge=0, description="Learning rate of a classifier's heads.")
    classifier_weight_decay: Float = Field(0.01, ge=0, description="Weight decay of a classifier's heads.")
    classifier_scale: Float = Field(1, gt=0, description="Largest logit of a CosineLinear head.")
    adam_epsilon: Float = Field(1e-8, gt=0, description="Epsilon of AdamW.")
    adam_states: Literal["float32", "int8"] = Field(
        "float32",
        description="Type of AdamW's two moments: that of the weights (float32, usually), or 8 bits by bitsandbytes, "
        "which changes the results; tensors of fewer than 4096 values keep 32 bits.",
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning-rate schedule over the steps of a task."
    )
    lr_min_ratio: Float = Field(0, ge=0, le=1, description="Learning rate at the end of a schedule, as a share of lr.")
    warmup_ratio: Float = Field(0, ge=0, lt=1, description="Share of the steps of a task with linear warm-up.")
    max_grad_norm: Float | None = Field(None, gt=0, description="Clip the gradient to this norm; None: no clipping.")
    keep_optimizer_state: bool = Field(
        False, description="Keep the optimizer state from task to task; False: a fresh optimizer for each task."
    )
    info_per_steps: Int = Field(25, ge=1, description="Log the mean loss every n optimizer steps.")


class FreezeOptions(OptionGroup):
    """Freezing: a setting of any method."""

    freeze_parts: tuple[str, ...] = Field(
        (),
        description="Frozen parts: embeddings | head | layers A-B | attention A-B | mlp A-B | parameter name.",
    )
    freeze_from_task: Int = Field(1, ge=0, description="First task (from 0) in which they are frozen.")
    freeze_match: Literal["component", "substring"] = Field(
        "component",
        description="component: whole parts of names; substring: layers.1 also means layers.10, as in published code.",
    )
    keep_frozen_states: Literal["memory", "disk"] | None = Field(
        None,
        description="Run frozen lowest layers once per task and keep their output here; --dry_run: its size.",
    )


class PeftOptions(OptionGroup):
    """Adapters: a setting of any method."""

    PEFT_type: Literal["LoRA", "IA3", "Bottleneck", "PromptTuning", "PrefixTuning"] | None = Field(
        None, description="Train an adapter of this type and freeze the backbone; None: train the backbone."
    )
    PEFT_lora_r: Int = Field(8, ge=1, description="Rank of LoRA.", json_schema_extra=search(4, 8, 32))
    PEFT_lora_alpha: Int = Field(16, ge=1, description="LoRA's scale: alpha / r.", json_schema_extra=search(8, 16, 32))
    PEFT_lora_dropout: Float = Field(0.05, ge=0, lt=1, description="Dropout before LoRA's down-projection.")
    PEFT_lora_target_modules: tuple[str, ...] | None = Field(
        None,
        description="Names of the linear layers that get LoRA, or [all-linear], experts included; None: as in peft's "
        "table; for other models all linear layers outside mixtures of experts.",
    )
    PEFT_ia3_target_modules: tuple[str, ...] | None = Field(
        None,
        description="Names of the linear layers that IA3 scales, or [all-linear]; None: as for LoRA. Of the last layer "
        "of a block the input is scaled, of others the output.",
    )
    PEFT_bottleneck_size: Int = Field(
        50, ge=1, description="Width of the bottleneck adapter after each block.", json_schema_extra=search(16, 50, 128)
    )
    PEFT_num_virtual_tokens: Int = Field(
        10, ge=1, description="Length of a prompt or prefix.", json_schema_extra=search(5, 10, 50)
    )
    PEFT_prompt_tuning_init_text: str = Field(
        "auto",
        description="Text that initialises a prompt; auto: random vocabulary words, empty: random values.",
    )


class ReplayOptions(OptionGroup):
    """Replay: a setting of any method."""

    is_replay: bool = Field(False, description="Also train on examples of earlier tasks, kept in memory.")
    Replay_buffer_ratio: Float = Field(
        0.01,
        gt=0,
        le=1,
        description="Share of the examples of each task kept in memory, at least one.",
        json_schema_extra=search(0.01, 0.05, 0.1),
    )
    Replay_buffer_size: Int | None = Field(
        None, ge=1, description="Size of the memory in examples, over all tasks; replaces the ratio."
    )
    Replay_batch_level: bool = Field(
        True, description="Fill half of each batch from memory; False: add the memory to the examples of the task."
    )
    Replay_sampling_algorithm: Literal["random", "reservoir", "herding", "surprise"] = Field(
        "random", description="How examples for the memory are selected; surprise: those with the largest mean loss."
    )
    Replay_surprise_on: Literal["answer", "sequence"] = Field(
        "answer", description="Tokens of the mean loss: those of the answer, or of prompt and answer."
    )
    Replay_surprise_when: Literal["before", "after"] = Field(
        "before", description="Whether that loss is measured before or after the task is learned."
    )
    Replay_update: Literal["task", "step"] = Field(
        "task",
        description="When the memory is updated: at the end of a task, or after each step (reservoir over "
        "presentations: an example counts once per epoch).",
    )
    Replay_class_balanced: bool = Field(
        False, description="Divide the memory equally among classes (among tasks where there are no classes)."
    )
    Replay_fix_budge_each_class: bool = Field(
        False, description="With class balance: the quota of a class is size / number of all classes, from the start."
    )
