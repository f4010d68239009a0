"""Chat templates as model families have them, without tools, and tokenizers that have them."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from tests import tiny


class Family(NamedTuple):
    """A template with the tokens that it needs, and what is learned of a chat with one question `Q` and answer `A`."""

    source: str
    before: str  # text right before the answer: the end of the prompt
    end: str  # text after it that is learned
    eos: str
    bos: str | None = None
    system: bool = True  # a chat may begin with a system turn
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()  # tokens that are added, but not special


CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}" + ALTERNATE + ""
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3_FIRST = (  # it writes the assistant's header whether it is asked to or not
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
LLAMA_3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Today Date: ' + date_string + '\n\n' }}"
    "{{- system_message }}{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
MISTRAL_1 = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_3 = (  # a system turn comes before the last question
    '{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}'
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    '{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}'
    '{{- bos_token }}{%- for message in loop_messages %}{%- if message["role"] == "user" %}'
    "{%- if message == user_messages[-1] and system_message is defined %}"
    '{{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}{%- else %}'
    '{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}{%- elif message["role"] == "assistant" %}'
    '{{- " " + message["content"]|trim + eos_token}}{%- endif %}{%- endfor %}'
)
MISTRAL_7 = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{- '[INST]' + message['content'] + '[/INST]' }}{%- elif message['role'] == 'system' %}"
    "{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}{%- elif message['role'] == 'assistant' %}"
    "{{- message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}" + ALTERNATE + "{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
QWEN_2_5 = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\n' }}{%- endif %}"
    '{%- for message in messages %}{%- if (message.role == "user") or (message.role == "system" and not loop.first) or '
    '(message.role == "assistant" and not message.tool_calls) %}'
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN_3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') }}
            {{- '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
DEEPSEEK_R1 = (
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\n'}}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
SMOLLM_3 = (
    "{%- set mode = 'think' if enable_thinking is not defined or enable_thinking else 'no_think' -%}"
    "{{- '<|im_start|>system\nToday Date: ' + strftime_now('%d %B %Y') + '\nReasoning Mode: /' + mode + '\n\n' -}}"
    "{{- messages[0].content if messages[0].role == 'system' else 'You are SmolLM.' -}}{{- '<|im_end|>\n' -}}"
    "{%- for message in messages -%}{%- if message.role == 'user' -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' -%}{% generation %}{%- if mode == 'think' -%}"
    "{{ '<|im_start|>assistant\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}{%- else -%}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}"
    "{%- endif -%}{% endgeneration %}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

IM = ("<|im_start|>", "<|im_end|>")
HEADER = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
TURN = "<|im_start|>assistant\n"
FAMILIES = {
    "ChatML, eos <|im_end|>": Family(CHATML, TURN, "<|im_end|>", "<|im_end|>", special=IM[:1]),
    "ChatML, eos <|endoftext|>": Family(CHATML, TURN, "<|im_end|>", "<|endoftext|>", special=IM),
    "Llama-2": Family(LLAMA_2, " [/INST]", " </s>", "</s>", "<s>"),
    "Llama-3 (first version)": Family(
        LLAMA_3_FIRST, LLAMA_HEADER, "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>", special=HEADER
    ),
    "Llama-3.2": Family(LLAMA_3, LLAMA_HEADER, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>", special=HEADER[:2]),
    "Mistral v1": Family(MISTRAL_1, " [/INST]", "</s>", "</s>", "<s>", False),
    "Mistral v3": Family(MISTRAL_3, "[/INST]", "</s>", "</s>", "<s>", special=("[INST]", "[/INST]")),
    "Mistral v7": Family(
        MISTRAL_7, "[/INST]", "</s>", "</s>", "<s>",
        special=("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    ),
    "Gemma": Family(
        GEMMA, "<start_of_turn>model\n", "<end_of_turn>", "<eos>", "<bos>", False, ("<start_of_turn>", "<end_of_turn>")
    ),
    "Qwen2.5": Family(QWEN_2_5, TURN, "<|im_end|>", "<|im_end|>", special=IM[:1]),
    "Qwen3": Family(
        QWEN_3, TURN + "<think>\n\n</think>\n\n", "<|im_end|>", "<|im_end|>", special=IM[:1],
        plain=("<think>", "</think>"),
    ),
    "DeepSeek-R1": Family(
        DEEPSEEK_R1, "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>",
        special=("<｜User｜>", "<｜Assistant｜>"), plain=("<think>", "</think>"),
    ),
    "Phi-3": Family(
        PHI_3, "<|assistant|>\n", "<|end|>", "<|endoftext|>",
        special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "SmolLM2": Family(CHATML, TURN, "<|im_end|>", "<|im_end|>", special=IM[:1]),
    "SmolLM3": Family(SMOLLM_3, TURN, "<|im_end|>", "<|im_end|>", special=IM[:1], plain=("<think>", "</think>")),
}  # fmt: skip


def words_of(family: Family) -> PreTrainedTokenizerFast:
    """A small tokenizer with this template and the tokens that it needs."""
    made = tiny.tokenizer.__wrapped__(family.bos is not None)
    made.add_tokens([token for token in (family.eos, family.bos, *family.special) if token], special_tokens=True)
    made.add_tokens(list(family.plain))
    made.eos_token, made.bos_token, made.chat_template = family.eos, family.bos, family.source
    if family.bos is not None:
        from tokenizers import processors

        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, made.bos_token_id)]
        )
    return made
