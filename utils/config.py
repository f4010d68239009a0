"""Every option of a run, declared once: name, type, default, limits, one sentence of help.

The YAML reader, the command line, `--help`, docs/options.md and all error messages come from these declarations
(utils/options/parse.py). Names are flat: `config.lr`. A method declares its options in models/<METHOD>.py, under names
that begin with the name of the method.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, AllowInfNan, BaseModel, ConfigDict, Field, Strict

EMBEDDED_BACKBONE = "dataset/biography_demo_backbone"
ADAPTER_LR = 10  # adapters are tuned at learning rates higher by this factor
OWN_FILES = ("task_names", "fields", "fields_join")  # options of dataset_files
WATCHING = ("keep_best", "early_stop_accuracy", "early_stop_patience")  # they score a split during training
# Strict: `true` is not the number 1 and 2.5 is not a number of epochs.
Int = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
Float = Annotated[float, Strict(), AllowInfNan(False)]
NAME_PATTERN, NAME_LENGTH = r"^\w[\w.+-]*$", 100
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]  # of a single folder: no path separators
Joint = Annotated[str, AfterValidator(lambda text: text.replace("\\n", "\n").replace("\\t", "\t"))]

T = TypeVar("T")


def search(*values: Any) -> dict[str, Any]:
    """The values of an option that utils.tune tries, for its field."""
    return {"search": list(values)}


LR_SEARCH = search(1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)  # times ADAPTER_LR with an adapter


class OptionGroup(BaseModel):
    """Base class of all groups of options: frozen, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, validate_default=True)

    def is_changed(self, name: str) -> bool:
        """True if the value of an option differs from its default."""
        return getattr(self, name) != type(self).model_fields[name].default

    def updated(self, **values: Any) -> Self:
        """A copy with some values replaced, validated again.

        Raises:
            pydantic.ValidationError: a value that the option does not allow, or an unknown option.
        """
        return type(self).model_validate({name: getattr(self, name) for name in type(self).model_fields} | values)


class RunOptions(OptionGroup):
    """Run."""

    cfg: str | None = Field(
        "config/biography_demo_task2/SEQ.yaml",
        description="YAML file with options; None: none, as with --backbone or --dataset and no --cfg.",
    )
    exp_prefix: Name = Field("default", description="First part of the name of the run folder.")
    wandb_name: Name | None = Field(
        None,
        description="Name of the run; None: <exp_prefix>-<YAML file, or stream and method where it has others>.",
    )
    dump_path: str = Field("experiments", description="Folder that holds the run folders.")
    logger_filename: Name = Field("train.log", description="Name of the text log inside the run folder.")
    seed: Int = Field(1, ge=0, description="Seed of all randomness.")
    dry_run: bool = Field(False, description="Check the options, print the plan of the run and stop.")
    resume: str | None = Field(None, description="Run folder to resume; its config.yaml replaces all other options.")
    save_llm_ckpt: bool = Field(False, description="Keep the checkpoint of every task, not only the newest one.")
    save_total_limit: Int | None = Field(
        None, ge=1, description="With save_llm_ckpt, keep only the newest n checkpoints; None: all."
    )
    save_llm_ckpt_epoch_interval: Int = Field(
        -1, ge=-1, description="Write a checkpoint every n epochs, too; -1: never."
    )
    save_llm_ckpt_step_interval: Int = Field(
        -1, ge=-1, description="Also write a checkpoint every n optimizer steps; -1: never."
    )
    tuning: str | None = Field(None, description="How the values were chosen, printed by reports; by utils.tune.")
    checkpoint_minutes: Float = Field(
        15, ge=0, description="Also write a checkpoint n minutes after the last one; 0: never."
    )

    @property
    def run_name(self) -> str:
        """`wandb_name`, or the beginning of the name that the command line gives a run without one."""
        return self.wandb_name or self.exp_prefix


class TrackerOptions(OptionGroup):
    """Trackers."""

    is_wandb: bool = Field(False, description="Log to Weights & Biases (offline without a key or a network).")
    wandb_project: str | None = Field(None, description="Project in Weights & Biases.")
    wandb_entity: str | None = Field(None, description="Entity (user or team) in Weights & Biases.")
    is_tensorboard: bool = Field(False, description="Write TensorBoard files into the run folder.")


class StreamOptions(OptionGroup):
    """Stream of tasks."""

    dataset: Name = Field("biography_demo_task2", description="Stream to train on: a folder in dataset_path.")
    dataset_path: str = Field("dataset", description="Folder that holds the streams.")
    dataset_files: tuple[str, ...] | None = Field(
        None, description="Your own files or folders, one per task; replaces dataset. See docs/own-data.md."
    )
    task_order: str = Field(
        "stored", description="Order of the tasks: stored, reversed, random:<seed>, or their numbers, such as 2,0,1."
    )
    first_tasks: Int | None = Field(None, ge=1, description="Use only the first n tasks in that order; None: all.")
    score_split: Literal["test", "dev"] = Field("test", description="Split that is scored; dev: to tune, without test.")
    task_names: tuple[str, ...] | None = Field(None, description="With dataset_files: other names of the tasks.")
    fields: str | None = Field(None, description="Fields of your records: a preset or ROLE=FIELD,...; see own-data.md.")
    fields_join: Joint = Field("\n", description="Text between the fields of a role, \\n is a line end.")
    il_mode: Literal["CIL", "TIL", "IIL", "CIT", "CKE"] = Field(
        "CIT",
        description="Scenario: class-, task-, instance-incremental, instruction tuning, knowledge editing.",
    )
    classification_type: Literal["auto", "sentence-level", "word-level"] = Field(
        "auto", description="Unit of classification; auto: as the stream declares."
    )
    classifier: Literal["Linear", "CosineLinear"] | None = Field(
        None, description="Classification heads on the backbone, one per task (CIL and TIL); None: generated answers."
    )
    prompt_type: Literal[
        "auto",
        "none",
        "default",
        "qa",
        "relation_classification_qa",
        "relation_classification_state",
        "relation_classification_state_no_pos",
    ] = Field("auto", description="Prompt template; auto: as the stream declares.")
    metric_for_each_task: tuple[str, ...] | None = Field(
        None, description="Metric of each task; None: as the stream declares."
    )
    max_seq_length: Int = Field(
        -1, ge=-1, description="Maximum tokens of prompt and answer together; -1: as the stream declares."
    )
    max_seq_length_list: tuple[Count, ...] | None = Field(None, description="Per task; replaces max_seq_length.")
    cut_side: Literal["auto", "left", "right", "middle"] = Field(
        "auto", description="Where an over-long prompt loses tokens; auto: as the stream declares, otherwise left."
    )
    strip: bool | None = Field(
        None, description="False, for code: keep white space around question and answer; None: as the stream declares."
    )
    parse_special_tokens: bool = Field(
        False, description="Parse special tokens (</s>) that occur in the data's text; False: they are plain text."
    )
    chat_date: Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])$")] = Field(
        "2024-07-26", description="Date that chat templates print as today's, YYYY-MM-DD (DD at most 28)."
    )
    chat_thinking: bool | None = Field(
        None, description="What chat templates get as enable_thinking (Qwen3, SmolLM3); None: their own default."
    )


class BackboneOptions(OptionGroup):
    """Backbone."""

    backbone: str = Field(
        EMBEDDED_BACKBONE,
        description="Hub name or local folder of a causal LM, an encoder or an encoder-decoder.",
    )
    backbone_revision: str | None = Field(None, description="Revision on the hub.")
    load_llm_ckpt: bool = Field(False, description="Load weights and tokenizer from backbone_cache_path.")
    backbone_cache_path: str | None = Field(
        None, description="Folder of the checkpoint (with load_llm_ckpt); otherwise the download cache of the hub."
    )
    backbone_self_test: bool = Field(
        True, description="Check at the start of a run that padding does not change what the model computes."
    )
    backbone_random_init: bool = Field(False, description="Keep the architecture and initialise the weights at random.")
    backbone_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="Data type of the weights; auto: that of the checkpoint."
    )
    backbone_extract_token: Literal["last_token", "cls_token"] = Field(
        "last_token",
        description="Token whose hidden state represents a text; cls_token: an encoder's first token.",
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="Implementation of attention; auto: chosen by transformers."
    )
    mixed_precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="Autocast in training; None: as in the launch file of accelerate."
    )


class TrainOptions(OptionGroup):
    """Training."""

    method: str = Field(
        "SEQ", description="Continual-learning method: a file in models/, or package.module:Class outside the project."
    )
    training_epochs: Int = Field(10, ge=0, description="Epochs of each task.")
    training_epochs_first_task: Int | None = Field(None, ge=0, description="The same for the first task.")
    training_epochs_list: tuple[Annotated[Int, Field(ge=0)], ...] | None = Field(
        None, description="The same for each task; replaces both."
    )
    batch_size: Int = Field(32, ge=1, description="Examples per optimizer step, over all processes.")
    group_by_length: bool = Field(
        False,
        description="Batches hold examples of similar length: less padding, but an epoch is no longer one uniform "
        "shuffle, which changes the results.",
    )
    gradient_accumulation_steps: Int = Field(
        1, ge=1, description="Micro-batches into which each process splits its share of a batch, to save memory."
    )
    gradient_checkpointing: bool = Field(
        False, description="Store only the inputs of layers and recompute activations in the backward pass."
    )
    lr: Float = Field(1e-5, ge=0, description="Learning rate of AdamW.", json_schema_extra=LR_SEARCH)
    lr_list: tuple[Float, ...] | None = Field(None, description="The same for each task; replaces lr.")
    weight_decay: Float = Field(5e-4, ge=0, description="Weight decay of AdamW.")
    classifier_lr: Float = Field(1e-3, ge=0, description="Learning rate of a classifier's heads.")
    classifier_weight_decay: Float = Field(0.01, ge=0, description="Weight decay of a classifier's heads.")
    classifier_scale: Float = Field(1, gt=0, description="Largest logit of a CosineLinear head.")
    adam_epsilon: Float = Field(1e-8, gt=0, description="Epsilon of AdamW.")
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
        None, description="Compute frozen lowest layers once per task and keep their output there; --dry_run: its size."
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
        "table, all outside mixtures of experts for models that are not in it.",
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
    Replay_sampling_algorithm: Literal["random", "reservoir", "herding"] = Field(
        "random", description="How examples for the memory are selected."
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


class EvaluateOptions(OptionGroup):
    """Evaluation."""

    evaluate_batch_size: Int = Field(64, ge=1, description="Sequences per process in evaluation.")
    backbone_max_new_token: Int = Field(
        -1, ge=-1, description="Maximum tokens of a generated answer; -1: as the stream declares."
    )
    backbone_max_new_token_list: tuple[Count, ...] | None = Field(
        None, description="The same for each task; replaces backbone_max_new_token."
    )
    evaluation_mode: Literal["verify", "generate"] = Field(
        "verify", description="verify: decide exact match along the target where possible; same scores as generate."
    )
    evaluate_autocast: bool = Field(
        True, description="Evaluate in the autocast of training (mixed_precision); False: in the type of the weights."
    )
    is_evaluate_init: bool = Field(True, description="Also evaluate all tasks before any training.")
    evaluate_unseen: bool = Field(False, description="After each task also evaluate tasks not yet learned.")
    evaluate_schedule: Annotated[str, Field(pattern=r"^(every|last|every_[1-9]\d*)$")] = Field(
        "every", description="Evaluate after every task, after the last alone, or every_<n>: each n-th and the last."
    )
    evaluate_limit: Int | None = Field(
        None, ge=1, description="Score a sample of at most n questions of a split, the same in all runs; None: all."
    )
    evaluate_interval: Int = Field(-1, ge=-1, description="Evaluate during a task every n epochs; -1: only at its end.")
    keep_best: bool = Field(
        False,
        description="End a task with its best weights on dev, which is scored every evaluate_interval epochs.",
    )
    early_stop_accuracy: Float | None = Field(
        None,
        gt=0,
        le=1,
        description="End a task when its score on its training questions reaches this value, see evaluate_interval.",
    )
    early_stop_patience: Int | None = Field(
        None, ge=1, description="End a task when dev has not improved for n evaluations, see evaluate_interval."
    )
    is_evaluate_only: bool = Field(False, description="Evaluate the backbone on all tasks and stop.")
    evaluate_checkpoint: str | None = Field(
        None,
        description="With is_evaluate_only and the options of a run: evaluate this checkpoint, including its heads.",
    )
    is_probing: bool = Field(
        False,
        description="After each task, fit probes on frozen features of all tasks: did head or backbone forget?",
    )
    probing_rows_per_class: Int | None = Field(
        None, ge=1, description="Training examples per class for the probes, drawn once; None: all."
    )
    save_features: bool = Field(False, description="Save the probed features: one file per task and evaluation point.")
    recovery: bool = Field(
        False,
        description="After the last task, fine-tune a copy of the model on part of the training examples of task 0 and "
        "evaluate task 0.",
    )
    recovery_ratio: Float = Field(0.5, gt=0, le=1, description="Share of task 0's training examples, the first ones.")
    recovery_epochs: Int = Field(1, ge=1, description="Epochs of the recovery.")


class Config(  # pydantic collects fields from the last base on
    EvaluateOptions,
    ReplayOptions,
    PeftOptions,
    FreezeOptions,
    TrainOptions,
    BackboneOptions,
    StreamOptions,
    TrackerOptions,
    RunOptions,
):
    """All general options of a run, frozen."""


GROUPS = tuple(group for group in reversed(Config.__bases__) if issubclass(group, OptionGroup))


class NoOptions(OptionGroup):
    """Options of a method that has none."""


def per_task(values: tuple[T, ...] | None, value: T, index: int) -> T:
    """The value for one task: from the list if there is one, otherwise the common value."""
    return value if values is None else values[index]
