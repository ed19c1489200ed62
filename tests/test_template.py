"""Chat templates are strangers' programs: what they may compute, what they may see, and how they fail."""

import contextlib
from pathlib import Path

import pytest
from conftest import command
from test_data import ROWS, refused, rows_file
from test_prompts import SYSTEM, TALK, TEMPLATES

from lit_gpt.files import write_json
from lit_gpt.prompts import get_style
from lit_gpt.settings import UserError
from lit_gpt.template import FILTERS, LONGEST, OWN_FILTERS, Template


def render(text: str, content: str = "Hi") -> str:
    return Template(text).prompt(content)


def test_what_templates_may_use() -> None:
    """The same text as transformers', for what templates of models use."""
    from transformers.utils.chat_template_utils import render_jinja_template

    text = """
    {%- macro show(m, deep=false) -%}
        {{- m.role | upper ~ ':' -}}
        {{ ' [' + m.content.strip().split('\\n')[0][:7] + '] ' if deep else m.content | trim }}
    {%- endmacro %}
    {%- set ns = namespace(count=0, seen=[], last=-1) %}
    {%- for m in messages if m.role != 'system' %}
        {%- if loop.index0 > 6 %}{% break %}{% endif %}
        {%- set ns.count = ns.count + loop.length * 2 - 1 %}
        {%- set ns.seen = ns.seen + [m.role] %}
        {{- show(m, deep=loop.first) }}
        {%- if m.content is string and 'sun' in m.content %}
            {{- '<' ~ m.content.replace('sun', 'moon') ~ '>' }}
        {%- endif %}
    {%- endfor %}
    {%- set block %}{{ ns.seen | join(', ') }}|{{ ns.count }}{% endset %}
    {{ block }} {{ messages[1:] | map(attribute='role') | list | tojson }}
    {{ messages[0] | tojson(indent=2) | indent(3) }}
    {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ [3, 1, 2] | sort | last }} {{ 7 % 4 }}
    {{ (messages[::-1] | first).content | length }} {{ dict(a=1, b='é') | tojson }} {{ {'z': 1}.items() | list }}
    {{ missing | default('none') }} {{ 'a' * 3 }} {{ messages[0].content.endswith('.') and not tools }} {{ 2 ** 5 }}
    {% if add_generation_prompt %}{{ bos_token }}ask{% endif %}
    """  # fmt: skip
    talk = (SYSTEM, *TALK[:3])
    messages = [{"role": turn.role, "content": turn.text} for turn in talk]
    [wanted], _ = render_jinja_template([messages], chat_template=text, add_generation_prompt=True, bos_token="<s>")
    template = Template(text.replace("{% if add_generation_prompt %}", "{% if true %}"))
    assert template._render(messages, True, "<s>", "</s>") == wanted


def test_filters_are_jinjas_own() -> None:
    from jinja2 import Environment

    assert set(FILTERS.split()) | set(OWN_FILTERS) - {"tojson"} <= set(Environment().filters)
    assert render("{{ 'a\nb' | indent(2, true) }}{{ 'aXbX' | replace('X', 'y', 1) }}") == "  a\n  baybX"


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ messages | attr('__class__') }}",
        "{{ [] | map(attribute='__class__') | list }}{{ raise_exception.__globals__ }}",
        "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context }}",
        "{{ range.__self__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ dict.fromkeys([1]).__class__.__base__ }}",
        "{% set ns = namespace(__html__=1) %}",
        "{% set ns = namespace() %}{% set ns.__call__ = range %}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '{x.__class__}'.format_map({'x': messages}) }}",
        "{% include '/etc/hostname' %}",
        "{% import '/etc/hostname' as x %}",
        "{% extends '/etc/hostname' %}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
        "{{ messages[0].update(content='x') }}",
        "{{ environment }}{{ raise_exception(loader) }}",
    ],
)
def test_nothing_else_is_to_be_had(text: str) -> None:
    found = ""
    with contextlib.suppress(UserError):
        found = render(text)
    assert found in ("", "[]")  # undefined
    assert render("{{ messages[0].content }}") == "Hi"


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ messages[0].content * 99 }}{% endfor %}",
        "{% for i in range(99999) if i > 9 ** 9 %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ [0] * 10 ** 12 }}",
        "{{ (9 ** 60) ** (9 ** 60) }}",
        "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('x', ns.s) %}"
        "{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
        "{{ ns.s | tojson }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
        "{% set ns.s = x %}{% endfor %}",
        "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(s='x') %}"
        "{% for i in range(60) %}{% set ns.s = m(ns.s) %}{% endfor %}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ 'x'.zfill(10 ** 12) }}",
        "{{ '\t'.expandtabs(10 ** 12) }}",
        "{{ 'x\n' | indent(10 ** 12) }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for i in range(20) recursive %}{% if loop.depth < 9 %}{{ loop(range(20)) }}{% endif %}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set x = s == 'y' ~ s %}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set x = 'y' in s %}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set x = s[1:] %}{% endfor %}",
        "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set x = s.upper() %}{% endfor %}",
        "{% set s = range(99999) | list %}{% for i in s %}{% set x = s | sort | list %}{% endfor %}",
    ],
)
def test_a_template_can_neither_loop_nor_fill_the_memory(text: str) -> None:
    with pytest.raises(UserError, match="computes too much"):
        render(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ 'x' | center(10 ** 12) }}", "No filter named 'center'"),
        ("{{ '%999999999999d' % 1 }}", "not supported; join texts by ~"),
        ("{{ '{:999999999999d}'.format(1) }}", "not supported; join texts by ~"),
        ("{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "RecursionError"),
        ("{{ ['{:99999999999d}'] | map(attribute='format') | list }}", "not supported; join texts by ~"),
        ("{{ '{:999999999999d}'['format'](1) }}", "not supported; join texts by ~"),
        ("{% for i in [[[]]] recursive %}{{ loop([i, i, i]) }}{% endfor %}", "RecursionError"),
        ("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "RecursionError"),
        ("{% if x %}" * 200 + "{% endif %}" * 200, "not a Jinja template"),
    ],
)
def test_what_python_or_jinja_bounds(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        render(text)


def test_the_budget_grows_with_the_conversation() -> None:
    long = "word " * 400_000  # a prompt of 2 MB
    assert long.strip() in render(TEMPLATES["chatml"], long)
    turns = [{"role": ("user", "assistant")[n % 2], "content": "The sea " * 40} for n in range(301)]
    looks_back = (
        "{% for m in messages %}{% for n in messages %}{% if n.role == m.role %}{% set last = n %}{% endif %}"
        "{% endfor %}{{ m.content }}{% endfor %}"
    )
    assert len(Template(looks_back)._render(turns, True, "", "")) == 301 * 320


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{% if %}", "x.jinja:1: not a Jinja template (Expected an expression"),
        ("\n\n{% for m in messages %}", "x.jinja:3: not a Jinja template"),
        ("{{ 1 | frobnicate }}", "No filter named 'frobnicate'"),
        ("{% generation %}{{ 1 }}", "not a Jinja template"),
        ("no template at all", "there is neither {{ nor {% in it"),
        ("{{ raise_exception('roles\nmust alternate') }}", "x.jinja refuses the conversation: roles must alternate"),
        ("{{ messages[5].content }}", "refuses the conversation: list object has no element 5"),
        ("{{ messages[0].content + 1 }}", "refuses the conversation: TypeError"),
        ("{{ 1 / 0 }}", "refuses the conversation: ZeroDivisionError"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "computes too much"),
        ("{{ ''.__class__.__mro__ }}{{ 'x'.__class__() }}", "access to attribute '__class__'"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "is not how the whole one begins",
        ),
        ("{#" + "x" * LONGEST + "#}{{ 1 }}", "characters, at most 1,048,576 are read"),
    ],
)
def test_preparing_with_a_broken_template(
    checkpoint: Path, tmp_path: Path, text: str, expected: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "x.jinja").write_text(text)
    flags = ["--checkpoint_dir", checkpoint, "--data_file", rows_file(tmp_path / "rows.jsonl", ROWS[:3])]
    code = command(
        "prepare json", *flags, "--destination_path", tmp_path / "set", "--prompt_style", tmp_path / "x.jinja"
    )
    told = capsys.readouterr().err
    assert code == 2
    assert expected in told.splitlines()[0]
    assert max(map(len, told.splitlines())) < 600
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("none/x.jinja", "cannot read the template none/x.jinja: No such file or directory"),
        (".", "no prompt style '.'"),
        ("./", "cannot read the template .: Is a directory"),
        ("binary.jinja", "binary.jinja: not UTF-8 text"),
        ("model", "has no chat template of its own"),
    ],
)
def test_templates_that_are_not_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str, expected: str, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("binary.jinja").write_bytes(b"\xff\xfe{{")
    flags = ["--checkpoint_dir", checkpoint, "--data_file", rows_file(Path("rows.jsonl"), ROWS[:3])]
    refused(capsys, command("prepare json", *flags, "--prompt_style", style), expected)


@pytest.mark.parametrize("content", [3, {"a": 1}, [], [{"name": "tools"}], [3]])
def test_configurations_without_a_usable_template(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": content})
    with pytest.raises(UserError, match="has no chat template of its own"):
        get_style("model", tmp_path)
