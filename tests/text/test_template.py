"""Prompts are those of transformers; what a template refuses is the request's mistake."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

from airi.errors import CheckpointError, ConfigError
from airi.text import ChatTemplate, TemplateError, Tokenizer

if TYPE_CHECKING:
    from tests.text.conftest import Pair

USER = {"role": "user", "content": "  2+2 <b>&'\"é?  "}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Météo <b>", "parameters": {"type": "object"}},
    }
]
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
TOOL_CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "21 C"},
]
LOOP = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
PARTS = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}<{{ part['type'] }}>{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "loop": LOOP,
    "json": "{{ tools | tojson(indent=2) }}{{ messages | tojson }}{{ {'b': 1, 'a': 'é'} "
    "| tojson(sort_keys=true) }}",
    "trimmed blocks": "{% if true %}\n  x\n  {% if false %}\n  y\n  {% endif %}\n{% endif %}\nz",
    "loop controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role }}"
    "{% if loop.index0 == 2 %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
    "dict": "{{ dict(a=1) | tojson }}{{ dict.fromkeys(['x'], 2) | tojson }}",
    "variables": "{{ bos_token }}{{ eos_token }}{{ undefined }}{{ flag }}{{ documents }}{{ tools is none }}",
    "methods": "{{ messages[0].content.split(' ')[0] }}{{ messages[1]['content'] | trim }}"
    "{{ messages[-1].role | upper }}",
    "generation prompt": LOOP + "{% if add_generation_prompt %}assistant:{% endif %}",
    "date": "{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("add", [True, False])
def test_rendering_equals_transformers(name: str, tools: list[dict[str, Any]] | None, *, add: bool) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    ours = ChatTemplate(TEMPLATES[name], special).render(
        CHAT, tools=tools, add_generation_prompt=add, flag=True
    )
    (theirs,), _ = render_jinja_template(
        [CHAT], tools=tools, chat_template=TEMPLATES[name], add_generation_prompt=add, flag=True, **special
    )
    assert ours == theirs


@pytest.mark.parametrize("name", ["byte-level", "llama2"])
def test_a_checkpoints_template_gives_transformers_ids(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    for chat in (CHAT[1:2], CHAT[1:]):
        assert pair.ours.render_chat(chat) == pair.theirs.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        theirs = pair.theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        assert pair.ours.encode_chat(chat) == theirs["input_ids"]


def test_arguments_of_tool_calls_reach_the_template_as_objects() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}"
        "{% endfor %}{% endfor %}"
    )
    chat = copy.deepcopy(TOOL_CHAT)
    assert ChatTemplate(source).render(chat) == "Paris"
    assert chat == TOOL_CHAT
    chat[1]["tool_calls"][0]["function"]["arguments"] = ""
    assert ChatTemplate(source).render(chat) == ""


def test_text_parts_become_a_string_where_the_template_takes_strings() -> None:
    parts: list[Any] = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}, "three"]
    assert ChatTemplate(LOOP).render([{"role": "user", "content": parts}]) == "user: one\ntwo\nthree\n"
    trimmed = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    assert ChatTemplate(trimmed).render([{"role": "user", "content": parts}]) == "one\ntwo\nthree"


@pytest.mark.parametrize(
    "source",
    [
        PARTS,
        "{% macro show(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
        "<{{ part.type }}>{{ part.text }}{% endfor %}{% endif %}{% endmacro %}"
        "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
        "{% for m in messages %}{% set c = m['content'] %}{% if c is string %}{{ c }}{% else %}"
        "{% for part in c | list %}<{{ part.type }}>{{ part.text }}{% endfor %}{% endif %}{% endfor %}",
    ],
)
def test_text_parts_stay_parts_where_the_template_walks_over_them(source: str) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "output_text", "text": "two"}]
    template = ChatTemplate(source)
    assert template.render([{"role": "user", "content": parts}]) == "<text>one<text>two"
    assert template.render([{"role": "user", "content": "one"}]) == "one"


def test_a_string_becomes_a_part_where_the_template_takes_parts_only() -> None:
    source = "{% for part in messages[0].content %}<{{ part.type }}>{{ part.text }}{% endfor %}"
    assert ChatTemplate(source).render([{"role": "user", "content": "one"}]) == "<text>one"


def test_missing_content_is_empty_unless_the_template_asks_for_none() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert ChatTemplate(LOOP).render([call]) == "assistant: \n"
    asks = "{% for m in messages %}{% if m.content is none %}no content{% endif %}{% endfor %}"
    assert ChatTemplate(asks).render([call]) == "no content"


def test_the_developer_is_the_system_unless_the_template_knows_the_role() -> None:
    message = {"role": "developer", "content": "Be brief."}
    assert ChatTemplate(LOOP).render([message]) == "system: Be brief.\n"
    knows = "{% for m in messages %}{% if m.role == 'developer' %}dev{% endif %}{% endfor %}"
    assert ChatTemplate(knows).render([message]) == "dev"


def test_reasoning_is_known_under_both_names() -> None:
    source = "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }}{% endfor %}"
    for name in ("reasoning", "reasoning_content", "thinking"):
        message = {"role": "assistant", "content": "4", name: "2 and 2"}
        assert ChatTemplate(source).render([message]) == "2 and 2/2 and 2"


@pytest.mark.parametrize(
    ("source", "messages", "says"),
    [
        ("{{ raise_exception('Roles must alternate') }}", CHAT, "^Roles must alternate$"),
        ("{{ messages[9].content.x }}", CHAT, "undefined|has no"),
        ("{{ 1 + messages[0].content }}", CHAT, "cannot render the messages: TypeError"),
        ("{{ 1 // 0 }}", CHAT, "ZeroDivisionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", CHAT, "nested too deeply"),
        ("{{ messages.__class__.__mro__ }}", CHAT, "unsafe|undefined"),
        ("{% set ns = namespace(_x=1) %}", CHAT, "_x"),
        (LOOP, "hi", "messages must be a list"),
        (LOOP, ["hi"], r"messages\[0\] must be an object"),
        (LOOP, [{"content": "x"}], r"messages\[0\]\.role must be a string"),
        (LOOP, [{"role": "user", "content": 5}], r"messages\[0\]\.content must be a string or a list"),
        (LOOP, [{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\]\.type is 'image_url'"),
        (LOOP, [{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text must be a string"),
        (LOOP, [{"role": "user", "content": [7]}], r"content\[0\] must be an object"),
        (LOOP, [{"role": "user", "content": "x", "tool_calls": 1}], "tool_calls must be a list"),
        (LOOP, [{"role": "user", "content": "x", "tool_calls": [{}]}], r"tool_calls\[0\]\.function must be"),
        (LOOP, [{"role": "user", "content": "x", "weird": object()}], "not JSON"),
    ],
)
def test_what_cannot_be_rendered_is_the_requests_mistake(source: str, messages: Any, says: str) -> None:
    with pytest.raises(TemplateError, match=says) as caught:
        ChatTemplate(source).render(messages)
    assert caught.value.field == "messages"
    assert "\n" not in str(caught.value)


def test_arguments_with_a_number_that_nobody_reads_name_the_call() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": f'{{"a": {"9" * 5000}}}'}}
    with pytest.raises(TemplateError, match=r"tool_calls\[0\]\.function\.arguments holds a number"):
        ChatTemplate("").render([{"role": "assistant", "tool_calls": [call]}])


def test_broken_arguments_name_the_call() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}
    with pytest.raises(TemplateError, match=r"tool_calls\[0\]\.function\.arguments must be JSON"):
        ChatTemplate(LOOP).render([{"role": "assistant", "content": "", "tool_calls": [call]}])


def test_template_kwargs_are_variables_but_not_the_messages() -> None:
    template = ChatTemplate("{{ flag }}{{ add_generation_prompt }}")
    assert template.render(CHAT, chat_template_kwargs={"flag": 1, "add_generation_prompt": False}) == "1False"
    for name in ("messages", "tools"):
        with pytest.raises(TemplateError, match=f"chat_template_kwargs must not contain '{name}'"):
            template.render(CHAT, chat_template_kwargs={name: []})


def test_a_final_message_can_be_continued() -> None:
    source = LOOP + "{% if add_generation_prompt %}assistant:{% endif %}"
    chat = [*CHAT, {"role": "assistant", "content": "It is"}]
    theirs = render_jinja_template([chat], chat_template=source, continue_final_message=True)[0][0]
    template = ChatTemplate(source)
    assert template.render(chat, add_generation_prompt=False, continue_final_message=True) == theirs
    with pytest.raises(TemplateError, match="cannot both be true"):
        template.render(chat, continue_final_message=True)
    with pytest.raises(TemplateError, match="leaves out the last message"):
        ChatTemplate("x").render(chat, add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(TemplateError, match="needs a last message"):
        template.render([], add_generation_prompt=False, continue_final_message=True)


def _copy_tokenizer(pair: Pair, folder: Path, **config: Any) -> Path:
    (folder / "tokenizer.json").write_bytes((pair.folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_templates_are_found_where_checkpoints_keep_them(pairs: dict[str, Pair], tmp_path: Path) -> None:
    folder = _copy_tokenizer(
        pairs["gemma"], tmp_path, chat_template="from config {{ eos_token }}", eos_token="</s>"
    )
    assert Tokenizer.load(folder).render_chat(CHAT) == "from config </s>"
    listed = [{"name": "default", "template": "listed"}, {"name": "tool_use", "template": "tools"}]
    _copy_tokenizer(pairs["gemma"], tmp_path, chat_template=listed)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.render_chat(CHAT) == "listed"
    assert tokenizer.render_chat(CHAT, TOOLS) == "tools"
    assert tokenizer.render_chat(CHAT, template="tool_use") == "tools"
    (folder / "chat_template.jinja").write_text("from the file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag {{ documents[0].title }}")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.render_chat(CHAT) == "from the file"
    assert tokenizer.render_chat(CHAT, template="rag", documents=[{"title": "T"}]) == "rag T"
    assert transformers.PreTrainedTokenizerFast.from_pretrained(folder).chat_template["rag"].startswith("rag")
    with pytest.raises(TemplateError, match="no chat template is named 'x'; the model has: default, rag"):
        tokenizer.render_chat(CHAT, template="x")


def test_without_a_default_template_one_must_be_named(pairs: dict[str, Pair], tmp_path: Path) -> None:
    _copy_tokenizer(pairs["gemma"], tmp_path, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(TemplateError, match="no chat template; it has rag: name one"):
        Tokenizer.load(tmp_path).render_chat(CHAT)
    _copy_tokenizer(pairs["gemma"], tmp_path)
    with pytest.raises(TemplateError, match=r"the model has no chat template$"):
        Tokenizer.load(tmp_path).render_chat(CHAT)


@pytest.mark.parametrize("item", ["x", {"name": "rag"}, {"name": "rag", "template": 5}])
def test_a_list_of_templates_of_a_wrong_form_is_named(
    pairs: dict[str, Pair], tmp_path: Path, item: object
) -> None:
    _copy_tokenizer(pairs["gemma"], tmp_path, chat_template=[item])
    with pytest.raises(CheckpointError, match="chat_template must be a text, or a list of objects with name"):
        Tokenizer.load(tmp_path)


def test_a_file_or_a_text_replaces_the_checkpoints_template(pairs: dict[str, Pair], tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("mine {{ messages[0].role }}")
    folder = pairs["byte-level"].folder
    assert Tokenizer.load(folder, chat_template=file).render_chat(CHAT, TOOLS) == "mine system"
    assert (
        Tokenizer.load(folder, chat_template="given {{ bos_token }}").render_chat(CHAT) == "given <|begin|>"
    )
    with pytest.raises(ConfigError, match=r"nowhere\.jinja: cannot be read: No such file"):
        Tokenizer.load(folder, chat_template="nowhere.jinja")
    with pytest.raises(ConfigError, match="line 1"):
        Tokenizer.load(folder, chat_template="{% if %}")


def test_a_broken_template_of_a_checkpoint_is_named(pairs: dict[str, Pair], tmp_path: Path) -> None:
    _copy_tokenizer(pairs["gemma"], tmp_path, chat_template="{% for m in messages %}\n{{ m.content }}")
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(ConfigError, match="chat template 'default': line 2"):
        _ = tokenizer.chat_template
