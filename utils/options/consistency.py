"""Combinations of options that contradict each other, or in which one has no effect."""

from __future__ import annotations

from utils.config import OWN_FILES, WATCHING, Config

# The kinds of adapter that an option applies to, by the beginning of its name.
PEFT_KINDS = {
    "PEFT_lora_": ("LoRA",),
    "PEFT_ia3_": ("IA3",),
    "PEFT_bottleneck_": ("Bottleneck",),
    "PEFT_num_": ("PromptTuning", "PrefixTuning"),
    "PEFT_prompt_": ("PromptTuning",),
}
# Options that have no effect unless another one is set, by the beginning of their names.
SWITCHES = (
    ("Replay_", "is_replay"),
    ("recovery_", "recovery"),
    ("wandb_", "is_wandb"),
    ("probing_", "is_probing"),
    ("drift_", "drift"),
    ("save_features", "is_probing"),
    ("save_total_limit", "save_llm_ckpt"),
    ("evaluate_checkpoint", "is_evaluate_only"),
    ("general_fields", "general_files"),
    ("general_max", "general_files"),
    ("general_metrics", "general_files"),
)
# Options of the evaluation after tasks, which there is none of with is_evaluate_only.
AFTER_TASKS = ("evaluate_schedule", "general_schedule", "evaluate_unseen", "drift")
GENERAL = ("general_files", "general_tasks", "general_harness")


def check(config: Config) -> list[str]:
    """Problems that concern more than one option: combinations in which one would have no effect."""
    problems = [
        f"{name}: has no effect without {switch}; set {switch}{': True' if getattr(config, switch) is False else ''}"
        for name in Config.model_fields
        for prefix, switch in SWITCHES
        if name.startswith(prefix) and name != "wandb_name" and config.is_changed(name) and not getattr(config, switch)
    ]
    problems += [
        f"{name}: has no effect without dataset_files"
        for name in OWN_FILES
        if config.is_changed(name) and config.dataset_files is None
    ]
    if config.is_changed("Replay_buffer_ratio") and config.is_changed("Replay_buffer_size"):
        problems.append("Replay_buffer_ratio, Replay_buffer_size: expected one of them, got both")
    if config.Replay_fix_budge_each_class and not (config.Replay_class_balanced and config.Replay_buffer_size):
        problems.append("Replay_fix_budge_each_class: needs Replay_class_balanced and Replay_buffer_size")
    if config.is_replay:
        problems += _check_replay(config)
    problems += _check_adapters(config)
    if not config.logger_filename.endswith((".log", ".txt")):  # not one of the run's other files
        problems.append(f"logger_filename: expected a name that ends with .log or .txt, got {config.logger_filename!r}")
    problems += [
        f"{name}: has no effect without freeze_parts"
        for name in ("freeze_from_task", "freeze_match", "keep_frozen_states")
        if config.is_changed(name) and not config.freeze_parts
    ]
    problems += [
        f"{name}: expected -1 or at least 1, got 0"
        for name, field in Config.model_fields.items()
        if field.default == -1 and getattr(config, name) == 0
    ]
    problems += [
        f"{name}: has no effect without evaluate_interval, the epochs between two evaluations"
        for name in WATCHING
        if config.is_changed(name) and config.evaluate_interval < 1
    ]
    if config.is_changed("general_schedule") and not any(getattr(config, name) for name in GENERAL):
        problems.append(f"general_schedule: has no effect without {', '.join(GENERAL)}")
    problems += [
        f"{name}: has no effect with is_evaluate_only, which learns no task"
        for name in AFTER_TASKS
        if config.is_changed(name) and config.is_evaluate_only and config.evaluate_checkpoint is None
    ]
    if config.keep_best and config.keep_optimizer_state:
        problems.append("keep_best: the optimizer's moments belong to later weights; leave keep_optimizer_state out")
    problems += _check_classifier(config)
    if config.load_llm_ckpt and config.backbone_cache_path is None:
        problems.append("load_llm_ckpt: needs backbone_cache_path, the folder of the checkpoint")
    if config.lr_scheduler == "constant" and config.lr_min_ratio:
        problems.append("lr_min_ratio: has no effect with lr_scheduler constant")
    return problems


def _check_replay(config: Config) -> list[str]:
    problems = []
    if config.Replay_sampling_algorithm == "reservoir" and config.Replay_buffer_size is None:
        problems.append("Replay_sampling_algorithm: reservoir needs Replay_buffer_size")
    if config.Replay_sampling_algorithm != "surprise":
        problems += [
            f"{name}: has no effect without Replay_sampling_algorithm surprise"
            for name in ("Replay_surprise_on", "Replay_surprise_when")
            if config.is_changed(name)
        ]
    if config.Replay_update == "step" and config.Replay_sampling_algorithm != "reservoir":
        problems.append("Replay_update: step needs Replay_sampling_algorithm reservoir")
    if config.Replay_update == "step" and not config.Replay_batch_level:
        problems.append("Replay_update: step needs Replay_batch_level, as memory changes inside an epoch")
    if config.Replay_sampling_algorithm == "reservoir" and config.Replay_class_balanced:
        problems.append("Replay_class_balanced: has no effect with Replay_sampling_algorithm reservoir")
    if config.Replay_batch_level and config.batch_size < 2:
        problems.append(f"Replay_batch_level: needs a batch_size of at least 2, got {config.batch_size}")
    return problems


def _check_classifier(config: Config) -> list[str]:
    kind = config.classifier
    problems = [
        f"{name}: has no effect with classifier {kind}"
        for name in Config.model_fields
        if name.startswith("classifier_") and config.is_changed(name)
        if kind is None or (name == "classifier_scale" and kind != "CosineLinear")
    ]
    if kind is not None and config.drift:
        problems.append(f"drift: compares answers that are written; with classifier {kind} none are")
    if kind is not None and config.il_mode not in ("CIL", "TIL"):
        problems.append(f"classifier: {kind} needs il_mode CIL or TIL, where answers are classes; got {config.il_mode}")
    return problems


def _check_adapters(config: Config) -> list[str]:
    kind = config.PEFT_type
    problems = [
        f"{name}: has no effect with PEFT_type {kind}; it belongs to {' and '.join(kinds)}"
        for prefix, kinds in PEFT_KINDS.items()
        for name in Config.model_fields
        if name.startswith(prefix) and config.is_changed(name) and kind not in kinds
    ]
    if config.freeze_parts and kind in PEFT_KINDS["PEFT_num_"]:
        problems.append(f"freeze_parts: has no effect with PEFT_type {kind}, as no part of the model is trained")
    if config.backbone_quantization and kind is None:
        problems.append("backbone_quantization: quantised weights can't be trained; set PEFT_type, for adapters")
    if config.backbone_quantization and config.backbone_random_init:
        problems.append("backbone_quantization: has no effect with backbone_random_init, which loads no weights")
    if config.gradient_checkpointing and kind == "PrefixTuning":
        problems.append("gradient_checkpointing: layers would not read the prefix; leave it out with PrefixTuning")
    return problems
