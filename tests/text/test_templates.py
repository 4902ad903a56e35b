"""Chat templates: honest ones as transformers renders them, hostile ones within bounds."""
# ruff: noqa: E501 (templates are written as checkpoints ship them)

from __future__ import annotations

import copy
import os
import time

import pytest
from transformers import PreTrainedTokenizerFast

from dllm.errors import DllmError
from dllm.models.hub import resolve
from dllm.text import templates
from dllm.text.templates import render
from dllm.text.tokenizer import ChatTokenizer

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']
 + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
LLADA = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token}}{% endif %}
{% endfor %}"""
SMALL = {
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}a:{% generation %}{{ m.content }}"
    "{% set kept = 1 %}{% endgeneration %}{{ kept is defined }}{% else %}u:{{ m.content }}{% endif %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{% if not m.content %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "macros": "{% macro turn(m, end='!') -%} {{ m.role }}={{ m.content }}{{ end }} {%- endmacro %}"
    "{% for m in messages %}{{ turn(m, end='?') if loop.last else turn(m) }}{% endfor %}",
    "blocks": "  {% if true %}\n  {% set x %}a{{ 1 }}{% endset %}\n{{ x }}\n  {% endif %}\nend\n",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} {{ {'b': '<>&é', 'a': [1, none]} | tojson }}",
    "filters": "{{ messages | map(attribute='content') | join(', ') | upper | replace('A', 'b') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ '%s-%03d' % ('x', 7) }}{{ 'a{}'.format(3) }}",
    "dicts": "{% set d = dict(a=1) %}{{ d.items() | list }}{{ dict.fromkeys(['a']) }}{% set n = namespace(x=1, self=2) %}{{ n.self }}",
    "undefined": "{{ nothing }}{{ messages[0].name }}{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}",
    "reasoning": "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}|{{ m.keys() | list }}{% endfor %}",
}
HONEST = {
    "chatml": CHATML,
    "llama 3": LLAMA3,
    "qwen 3": QWEN3,
    "llada": LLADA,
    "mistral": MISTRAL,
    **SMALL,
}
USER = {"role": "user", "content": " What is <7> + é8? \n"}
REPLY = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n15", "name": None}
CHATS = {
    "one turn": [USER],
    "more": [USER, REPLY, {"role": "user", "content": "and twice?"}],
    "system": [{"role": "system", "content": " Be brief. "}, USER, REPLY],
    "reasons": [USER, {"role": "assistant", "content": "15", "reasoning": "add"}, USER],
}


@pytest.fixture(scope="module")
def bundled():
    return PreTrainedTokenizerFast.from_pretrained(resolve("tiny"))


@pytest.fixture(scope="module")
def tokenizer(bundled):
    other = copy.deepcopy(bundled)
    other.bos_token = "<s>"
    return other


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_template_gives_what_transformers_gives(tokenizer, name, chat, begin):
    tokenizer.chat_template = HONEST[name]
    text = ChatTokenizer(tokenizer, "llada")
    try:
        expected = tokenizer.apply_chat_template(
            CHATS[chat], tokenize=False, add_generation_prompt=begin
        )
    except Exception as error:
        with pytest.raises(DllmError, match=str(error)):
            text._render(CHATS[chat], begin)
    else:
        assert text._render(CHATS[chat], begin) == expected


def test_the_bundled_template_too(bundled):
    expected = bundled.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert ChatTokenizer(bundled, "llada").render([USER]) == expected


NESTED = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLED = "{% set n = namespace(v=START) %}{% for i in range(60) %}{% set n.v = STEP %}{% endfor %}{{ n.v }}"
CAPTURED = "{% set n = namespace(v='x') %}{% for i in range(60) %}{% set v %}{{ n.v }}{{ n.v }}{% endset %}{% set n.v = v %}{% endfor %}"
CALLS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
HOSTILE = [
    "{% for i in range(10**12) %}{% endfor %}",
    NESTED,
    CALLS,
    CAPTURED,
    DOUBLED.replace("START", "'xx'").replace("STEP", "n.v ~ n.v"),
    DOUBLED.replace("START", "[1]").replace("STEP", "[n.v, n.v]"),
    DOUBLED.replace("START", "[1]").replace("STEP", "n.v + n.v"),
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**9 }}",
    "{{ 10 ** (10 ** 9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' | format(10**9, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a\na' | indent(10**10) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ 'a' | replace('', 'a' * 10**7) | replace('', 'a' * 10**7) }}",
    "{{ ('a' * 10**7).join(range(99999) | map('string')) }}",
    "{{ [1] | batch(10**9, 0) | list }}",
    "{{ (7).to_bytes(10**10) }}",
    "{{ lipsum(n=10**9) }}",
    "{{ messages | tojson(indent=10**10) }}",
    "{{ 'a' * (2**24 + 1) }}",
    "{{ 1 / 0 }}",
    "{{ messages.a.b }}",
    "{{ messages + 1 }}",
    "{{ messages[0]() }}",
    "{{ " + "(" * 10**4 + "1" + ")" * 10**4 + " }}",
    "{% if 1 %}" * 10**3 + "{% endif %}" * 10**3,
    "{% include '/etc/passwd' %}",
    "{{ 'unclosed",
    "{{ messages.__class__.__mro__ }}",
    "{{ namespace(_a=1) }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n.x.y }}",
    5,
    None,
]


@pytest.mark.parametrize("template", HOSTILE, ids=lambda value: str(value)[:60])
def test_a_hostile_template_is_one_error_in_seconds(template, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 1)
    began = time.perf_counter()
    with pytest.raises(
        DllmError, match=r"^the checkpoint's chat template (refuses|fails|takes|gives|ends)"
    ):
        render(template, {"messages": [USER]})
    assert time.perf_counter() - began < 20  # 2 and a new process, on a machine with much to do
    assert render("{{ messages[0].role }}", {"messages": [USER]}) == "user"


def test_memory_has_a_bound():
    assert len(render("{{ 'a' * 2**24 }}", {})) == 2**24
    with pytest.raises(DllmError, match="too much memory"):
        render("{{ ('a' * 2**29) | length }}", {})


def test_what_a_message_holds_must_be_json():
    with pytest.raises(DllmError, match="messages: expected what can be JSON"):
        render("{{ messages }}", {"messages": [object()]})
    assert render("{{ messages[0] }}", {"messages": ["half \ud800"]}) == "half \ud800"


def test_ctrl_c_while_a_template_runs_leaves_no_stale_answer(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    render("{{ 1 }}", {})
    with monkeypatch.context() as patch:
        patch.setattr(templates, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render("{{ 1 }}", {})
    assert render("{{ 2 }}", {}) == "2"


def test_a_fork_has_a_process_of_its_own():
    assert render("{{ 1 }}", {}) == "1"
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, render("{{ 2 }}", {}).encode())
        templates._worker.stop()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 9) == b"2"
    assert render("{{ 3 }}", {}) == "3"
