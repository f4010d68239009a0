"""Suggestions for options that do not exist here."""

from __future__ import annotations

import difflib

from models import METHODS
from utils.config import Config
from utils.factory import load_method

ELSEWHERE = {  # a name in Hugging Face's Trainer, LLaMA-Factory, TRL or peft -> the option here, and a remark
    "learning_rate": "lr",
    "num_train_epochs": "training_epochs",
    "num_epochs": "training_epochs",
    "epochs": "training_epochs",
    "max_steps": "training_epochs",
    "per_device_train_batch_size": "batch_size (examples per optimizer step, over all processes)",
    "train_batch_size": "batch_size",
    "micro_batch_size": "gradient_accumulation_steps (parts into which batch_size is cut)",
    "per_device_eval_batch_size": "evaluate_batch_size",
    "eval_batch_size": "evaluate_batch_size",
    "model": "backbone",
    "model_name": "backbone",
    "model_path": "backbone",
    "model_name_or_path": "backbone",
    "model_revision": "backbone_revision",
    "cache_dir": "backbone_cache_path",
    "torch_dtype": "backbone_dtype",
    "dtype": "backbone_dtype",
    "bf16": "mixed_precision (bfloat16)",
    "fp16": "mixed_precision (bfloat16; fp16 is not supported)",
    "flash_attn": "attn_implementation",
    "output_dir": "dump_path",
    "run_name": "wandb_name",
    "report_to": "is_wandb (or is_tensorboard)",
    "logging_steps": "info_per_steps",
    "eval_steps": "evaluate_interval (in epochs)",
    "eval_strategy": "evaluate_interval (in epochs)",
    "evaluation_strategy": "evaluate_interval (in epochs)",
    "save_steps": "save_llm_ckpt_step_interval",
    "save_strategy": "save_llm_ckpt",
    "load_best_model_at_end": "keep_best",
    "early_stopping_patience": "early_stop_patience",
    "metric_for_best_model": "metric_for_each_task",
    "resume_from_checkpoint": "resume",
    "warmup_steps": "warmup_ratio (a share of a task's steps)",
    "lr_scheduler_type": "lr_scheduler",
    "max_length": "max_seq_length",
    "cutoff_len": "max_seq_length",
    "model_max_length": "max_seq_length",
    "max_new_tokens": "backbone_max_new_token",
    "template": "prompt_type",
    "dataset_dir": "dataset_path",
    "dataset_name": "dataset",
    "train_file": "dataset_files",
    "finetuning_type": "PEFT_type (lora is PEFT_type: LoRA)",
    "lora_rank": "PEFT_lora_r",
    "lora_r": "PEFT_lora_r",
    "lora_alpha": "PEFT_lora_alpha",
    "lora_dropout": "PEFT_lora_dropout",
    "lora_target": "PEFT_lora_target_modules",
    "target_modules": "PEFT_lora_target_modules",
    "num_virtual_tokens": "PEFT_num_virtual_tokens",
    "config": "cfg",
    "config_file": "cfg",
}


def hint(name: str, method: str) -> str:
    """A clause for the error about an unknown option.

    Args:
        name: What the user wrote.
        method: The method of the run, whose options are known too.
    """
    word = name.strip("'\"-").replace("-", "_")
    if word.lower() in ELSEWHERE:
        return f"here it is {ELSEWHERE[word.lower()]}"
    others = _options_of_methods(word)
    if word in others:
        owners = others[word]
        return f"it belongs to method {' or '.join(owners)}, and the method is {method}; set method: {owners[0]}"
    names = [*load_method(method).Options.model_fields, *Config.model_fields, *others]
    known = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(word.lower(), known, n=1)
    if not near:
        return "see python main_CL.py --help"
    owners = others.get(known[near[0]], [])
    of = f" of method {owners[0]}" if owners and method not in owners else ""
    return f"did you mean {known[near[0]]!r}{of}?"


def _options_of_methods(word: str) -> dict[str, list[str]]:
    """Options of the methods whose name the word begins with or nearly so, and which methods have each."""
    found: dict[str, list[str]] = {}
    if any(word.lower().startswith(f"{name}_".lower()) for name in METHODS):
        for name in METHODS:
            for option in load_method(name).Options.model_fields:
                found.setdefault(option, []).append(name)
    return found
