"""Evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from utils.groups.base import Count, Float, Int, OptionGroup

Schedule = Annotated[str, Field(pattern=r"^(every|last|every_[1-9]\d*)$")]
WATCHING = ("keep_best", "early_stop_accuracy", "early_stop_patience")  # they score a split during training
# They change neither training nor R.
MEASUREMENTS = (
    "drift", "drift_questions", "is_probing", "probing_rows_per_class", "save_features", "general_files",
    "general_tasks", "general_fields", "general_metrics", "general_schedule", "general_max_new_tokens",
    "general_harness", "recovery", "recovery_ratio", "recovery_epochs",
)  # fmt: skip


class EvaluateOptions(OptionGroup):
    """Evaluation."""

    evaluate_batch_size: Int = Field(64, ge=1, description="Sequences per process in evaluation.")
    backbone_max_new_token: Int = Field(
        -1, ge=-1, description="Maximum tokens of a generated answer; -1: as the stream declares."
    )
    backbone_max_new_token_list: tuple[Count, ...] | None = Field(
        None, description="Maximum tokens of an answer per task; replaces backbone_max_new_token."
    )
    evaluation_mode: Literal["verify", "generate"] = Field(
        "verify", description="verify: decide exact match along the target where possible; same scores as generate."
    )
    evaluate_autocast: bool = Field(
        True, description="Evaluate in the autocast of training (mixed_precision); False: in the type of the weights."
    )
    is_evaluate_init: bool = Field(True, description="Also evaluate all tasks before any training.")
    evaluate_unseen: bool = Field(False, description="After each task also evaluate tasks not yet learned.")
    evaluate_schedule: Schedule = Field(
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
    drift: bool = Field(
        False,
        description="After each task, measure the KL divergences between the model and the one before the stream, on "
        "training questions of the task.",
    )
    drift_questions: Count = Field(64, description="Most questions on which drift is measured.")
    general_files: tuple[str, ...] | None = Field(
        None,
        description="Your own questions, never trained, asked before training and after each task; a .txt: its "
        "perplexity. instruction=FILE, safety=FILE: their change is reported separately. See docs/comparing.md.",
    )
    general_tasks: tuple[str, ...] | None = Field(
        None,
        description="The same from streams in dataset_path: STREAM, or STREAM:TASK by number or name; none is trained.",
    )
    general_fields: str | None = Field(None, description="Fields of general_files, see fields.")
    general_metrics: tuple[str, ...] | None = Field(
        None,
        description="Metric of each of general_files; None: choice_likelihood where there are choices, jailbreak_rate "
        "with safety=, otherwise exact_match.",
    )
    general_schedule: Schedule = Field(
        "every",
        description="Questions outside the stream are asked before training and after these of the tasks that "
        "evaluate_schedule evaluates: every one, the last, or every_<n>: each n-th and the last.",
    )
    general_max_new_tokens: Int = Field(32, ge=1, description="Maximum tokens of an answer to general_files.")
    general_harness: tuple[str, ...] | None = Field(
        None,
        description="Tasks of lm-eval (pip install lm_eval), by name or by the path of a YAML file, asked like "
        "general_files; instruction=TASK, safety=TASK.",
    )
    recovery: bool = Field(
        False,
        description="After the last task, fine-tune a copy of the model on part of the training examples of task 0 and "
        "evaluate task 0.",
    )
    recovery_ratio: Float = Field(0.5, gt=0, le=1, description="Share of task 0's training examples, the first ones.")
    recovery_epochs: Int = Field(1, ge=1, description="Epochs of the recovery.")
