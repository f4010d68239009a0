"""Run and trackers."""

from __future__ import annotations

from pydantic import Field

from utils.groups.base import Float, Int, Name, OptionGroup


class RunOptions(OptionGroup):
    """Run."""

    cfg: str | None = Field(
        "config/biography_demo_task2/SEQ.yaml",
        description="YAML file with options; None: no file, which is the default with --backbone or --dataset.",
    )
    exp_prefix: Name = Field("default", description="First part of the name of the run folder.")
    wandb_name: Name | None = Field(
        None,
        description="Name of the run; None: <exp_prefix>-<YAML file>, with stream and method if not those of the file.",
    )
    dump_path: str = Field("experiments", description="Folder that holds the run folders.")
    logger_filename: Name = Field("train.log", description="Name of the text log inside the run folder.")
    seed: Int = Field(1, ge=0, description="Seed of all randomness.")
    deterministic: bool = Field(
        False, description="Deterministic kernels only, on GPUs: the same run gives the same numbers, but more slowly."
    )
    tf32: bool = Field(False, description="Multiply float32 matrices in TF32 on GPUs: faster, with 10 bits for 23.")
    dry_run: bool = Field(False, description="Check the options, print the plan of the run and stop.")
    resume: str | None = Field(None, description="Run folder to resume; its config.yaml replaces all other options.")
    save_llm_ckpt: bool = Field(False, description="Keep the checkpoint of every task, not only the newest one.")
    save_total_limit: Int | None = Field(
        None, ge=1, description="With save_llm_ckpt, keep only the newest n checkpoints; None: all."
    )
    save_llm_ckpt_epoch_interval: Int = Field(
        -1, ge=-1, description="Also write a checkpoint every n epochs; -1: never."
    )
    save_llm_ckpt_step_interval: Int = Field(
        -1, ge=-1, description="Also write a checkpoint every n optimizer steps; -1: never."
    )
    tuning: str | None = Field(None, description="How the values were chosen; from utils.tune, for reports.")
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
