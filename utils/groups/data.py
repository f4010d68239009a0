"""Stream and backbone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from utils.groups.base import Count, Int, Joint, Name, OptionGroup

EMBEDDED_BACKBONE = "dataset/biography_demo_backbone"
OWN_FILES = ("task_names", "fields", "fields_join")  # options of dataset_files


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
    max_seq_length_list: tuple[Count, ...] | None = Field(
        None, description="The same limit per task; replaces max_seq_length."
    )
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
        None, description="Value of enable_thinking in chat templates (Qwen3, SmolLM3); None: the template's default."
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
    backbone_quantization: Literal["nf4", "int8"] | None = Field(
        None, description="Weights of a frozen base in 4 bits (nf4, as QLoRA) or 8 bits (int8); needs PEFT_type."
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
