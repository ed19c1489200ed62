"""Prompt styles: their wording, their ids against transformers' chat templates, what is learnt, and what is refused."""

import json
from pathlib import Path

import pytest
from conftest import SENTENCES, SHARED, train_byte_level

from lit_gpt.files import write_json
from lit_gpt.prompts import STYLES, Conversation, Style, Turn, get_style, problem
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer

ASK = "Write a response that appropriately completes the request."
MARKS = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|USER|>", "<|ASSISTANT|>", "<|SYSTEM|>"),
]

# Templates in our own words of what models of these styles bring along.
_EACH = "{% for m in messages %}"
_ASKS = "{% if add_generation_prompt %}"


def _split(system: str) -> str:
    """Takes the system's message out; its text, made by an expression, goes to the first that prints `ns.lead`."""
    return (
        "{% set ns = namespace(lead='') %}{% if messages[0]['role'] == 'system' %}{% set ns.lead = "
        + system
        + " %}{% set messages = messages[1:] %}{% endif %}"
    )


TEMPLATES = {
    "chatml": _EACH + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    f"{_ASKS}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}",
    "llama3": "{{ bos_token }}" + _EACH + "{{ '<|start_header_id|>' + m['role'].replace('tool', 'ipython') + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    f"{_ASKS}{{{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}}}{{% endif %}}",
    "llama2-chat": _split("'<<SYS>>\n' ~ messages[0].content ~ '\n<</SYS>>\n\n'")
    + _EACH
    + "{% if m.role == 'user' %}{{ bos_token ~ '[INST] ' ~ ns.lead ~ m.content ~ ' [/INST]' }}{% set ns.lead = '' %}"
    "{% else %}{{ ' ' ~ m.content ~ ' ' ~ eos_token }}{% endif %}{% endfor %}",
    "mistral": "{{ bos_token }}" + _split("messages[0].content + '\n\n'") + _EACH
    # a template that checks the order of turns
    + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant take turns') }}"
    "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + ns.lead + m.content + ' [/INST]' }}{% set ns.lead = '' %}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "zephyr": _EACH + "{% if True %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    f"{_ASKS}<|assistant|>\n{{{{ '' }}}}{{% endif %}}",
    "gemma": "{{ bos_token }}" + _split("messages[0]['content'] + '\n\n'") + _EACH
    + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ ns.lead ~ (m.content | trim) }}"
    "{% set ns.lead = '' %}{{ '<end_of_turn>\n' }}{% endfor %}"
    f"{_ASKS}{{{{ '<start_of_turn>model\n' }}}}{{% endif %}}",
    "phi": _EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    f"{_ASKS}{{{{ '<|assistant|>\n' }}}}{{% endif %}}",
    "vicuna": _EACH + "{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == 'user' %}"
    "{{ 'USER: ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    f"{_ASKS}{{{{ 'ASSISTANT:' }}}}{{% endif %}}",
    "falcon": _EACH + "{% if m.role == 'system' %}{{ m.content + '\n\n' }}{% elif m.role == 'user' %}"
    "{{ 'User: ' + m.content + '\n\n' }}{% else %}{{ 'Assistant: ' + m.content + eos_token + '\n\n' }}{% endif %}"
    f"{{% endfor %}}{_ASKS}Assistant:{{% endif %}}",
}  # fmt: skip
SYSTEM = Turn("system", "The red dog likes the sun.")
TALK: Conversation = (
    Turn("user", "The old cat sees what?\n\n  def f():\n    return 1"),
    Turn("assistant", "The sea,\nthe sun: é 日本 1.5"),
    Turn("user", "the dog"),
    Turn("assistant", "- red\n- old"),
)


def write_tokenizer(folder: Path, kind: str) -> Path:
    """A folder with a tokenizer.json that has MARKS: byte level, or like Llama's of before or after 2024."""
    folder.mkdir(parents=True)
    if kind == "byte-level":
        train_byte_level(folder)
        content = json.loads((folder / "tokenizer.json").read_text())
        names = {"bos_token": "<|begin|>", "eos_token": "<|endoftext|>"}
        specials = ["<|begin|>"]
    else:
        from tokenizers import Tokenizer as Backend
        from tokenizers import models, normalizers, trainers

        backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=first, show_progress=False)
        backend.train_from_iterator([*SENTENCES, *(text for _, text, _ in TALK[:1])], trainer)
        content = json.loads(backend.to_str())
        content["added_tokens"] = content["added_tokens"][:3]
        content["decoder"] = {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}  # fmt: skip
        if kind == "metaspace":
            content["normalizer"] = None
            content["pre_tokenizer"] = {
                "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False
            }  # fmt: skip
        names, specials = {"bos_token": "<s>", "eos_token": "</s>"}, []
    size = len(content["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": size + n, "content": text, **flags} for n, text in enumerate(specials + MARKS)]
    for token in content["added_tokens"]:
        if token["content"] == "<|assistant|>":
            token["rstrip"] = True  # as Phi 3 has it: the line break after it disappears
    (folder / "tokenizer.json").write_text(json.dumps(content))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: write_tokenizer(root / kind, kind) for kind in ("byte-level", "prepend", "metaspace")}


@pytest.fixture(params=["byte-level", "prepend", "metaspace", "Mistral-7B"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    if request.param == "Mistral-7B" and not SHARED.exists():
        pytest.skip("no real tokenizer at hand")
    return SHARED / "hub/mistralai/Mistral-7B-v0.1" if request.param == "Mistral-7B" else folders[request.param]


def reference(folder: Path, template: str, conversation: Conversation, asks: bool) -> list[int]:
    """What transformers makes of it."""
    from transformers import PreTrainedTokenizerFast

    model = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": turn.role, "content": turn.text} for turn in conversation]
    return list(
        model.apply_chat_template(
            messages, chat_template=template, tokenize=True, add_generation_prompt=asks, return_dict=False
        )
    )


def check_marks(style: Style, tokenizer: Tokenizer, conversation: Conversation, template_end: str = "") -> None:
    """Exactly the answers are learnt, each with an end, and what stands before one is the prompt of generation."""
    [(ids, marks)] = style.encode(tokenizer, [conversation])
    stops, answers = style.stop_ids(tokenizer), []
    for place, turn in enumerate(conversation):
        if turn.role != "assistant":
            continue
        start = len(style.encode_prompt(tokenizer, conversation[:place]))
        assert ids[:start] == style.encode_prompt(tokenizer, conversation[:place])
        end = next(at for at in range(start, len(ids)) if ids[at] in stops)
        assert marks[start : end + 1] == [True] * (end + 1 - start)
        answer = tokenizer.decode(ids[start:end]).strip()  # a template's end is text where the tokenizer has no token
        assert answer.removesuffix(template_end) == turn.text
        answers += range(start, end + 1)
    assert [at for at, mark in enumerate(marks) if mark] == answers
    assert answers[-1] == len(ids) - 1


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(folder: Path, name: str, system: bool) -> None:
    tokenizer, template = Tokenizer(folder), TEMPLATES[name]
    talk = (SYSTEM, *TALK) if system or name == "vicuna" else TALK  # Vicuna's own system prompt is in no template
    ends = get_style(name).stop_ids(tokenizer)
    own_end = len(ends) == 2 or "eos_token" in template
    for style in (get_style(name), get_style(template)):
        for asked in (talk[:-1], talk[:-3]):
            if len(asked) < 3 or own_end:  # without its end token a style ends turns by EOS, templates by text and EOS
                wanted = reference(folder, template, asked, True)
                ids = style.encode_prompt(tokenizer, asked)
                bos = not get_style(name).begin and style.adds_bos and tokenizer.use_bos
                assert ids == [tokenizer.bos_id] * bos + wanted
        [(ids, _)] = style.encode(tokenizer, [talk])
        if own_end:
            wanted = reference(folder, template, talk, False)
            while wanted[-1] not in ends:  # what follows the last answer's end is left out
                wanted.pop()
            assert ids[len(ids) - len(wanted) :] == wanted
        check_marks(style, tokenizer, talk, "".join(get_style(name).stop))


@pytest.mark.parametrize("name", STYLES)
def test_every_style_learns_answers_and_their_ends(folders: dict[str, Path], checkpoint: Path, name: str) -> None:
    style = get_style(name)
    for place in (*folders.values(), checkpoint):
        tokenizer = Tokenizer(place)
        for talk in (TALK, TALK[:2], (TALK[0]._replace(input="the sea"), *TALK[1:])):
            check_marks(style, tokenizer, talk)
            ids = style.encode(tokenizer, [talk])[0][0]
            assert ids[0] != ids[1]
            if name != "llama2-chat" and tokenizer.bos_id != tokenizer.eos_id:
                assert ids.count(tokenizer.bos_id) == int(tokenizer.use_bos or bool(style.begin))
            assert "the sea" in tokenizer.decode(ids) or not talk[0].input
        if style.system is not None:
            check_marks(style, tokenizer, (SYSTEM, *TALK))
        if style.tool is not None:
            check_marks(style, tokenizer, (TALK[0], TALK[1], Turn("tool", "sun"), TALK[3]))


def test_alpaca_wording() -> None:
    alpaca = get_style("alpaca")
    without = f"Below is an instruction that describes a task. {ASK}\n\n### Instruction:\nAdd 1.\n\n### Response:"
    assert alpaca.prompt("Add 1.") == without
    assert alpaca.prompt(" Add 1.\n", " \n") == without
    assert alpaca.prompt("Add 1.", " 2\n") == (
        f"Below is an instruction that describes a task, paired with an input that provides further context. {ASK}"
        "\n\n### Instruction:\nAdd 1.\n\n### Input:\n2\n\n### Response:"
    )


def test_plain_is_the_text_itself(checkpoint: Path) -> None:
    plain, tokenizer = get_style("plain"), Tokenizer(checkpoint)
    assert plain.prompt("The sky is") == "The sky is"
    assert plain.prompt("Sum up:", "A long text.") == "Sum up:\n\nA long text."
    text = "The old cat sees the sun."
    ids = tokenizer.encode(text, eos=True)
    assert plain.encode(tokenizer, [(Turn("assistant", text),)]) == [(ids, [False] + [True] * (len(ids) - 1))]


@pytest.mark.parametrize("name", STYLES)
def test_prompts_end_without_a_space(name: str) -> None:
    """SentencePiece puts the space before the answer's first word; a second one would be another token."""
    for given in ("", "some input "):
        prompt = get_style(name).prompt("Do it. ", given)
        assert prompt == prompt.rstrip(" ")
        assert "Do it." in prompt
        assert given.strip() in prompt


@pytest.mark.parametrize("spec", [*STYLES, "template"])
def test_what_a_turn_says_becomes_no_special_token(folders: dict[str, Path], spec: str) -> None:
    style = get_style(TEMPLATES["chatml"] if spec == "template" else spec)
    for place in folders.values():
        tokenizer = Tokenizer(place)
        specials = {tokenizer.bos_id, tokenizer.eos_id, *(tokenizer.find(mark) for mark in MARKS)}
        hostile = "".join(MARKS) + tokenizer.eos + tokenizer.bos + "{text}{eos}{bos}{input}\ufdd0\ufdd1"

        def count(text: str, given: str, tokenizer: Tokenizer = tokenizer, specials: set = specials) -> int:
            [(ids, _)] = style.encode(tokenizer, [(Turn("user", text, given), Turn("assistant", text))])
            return sum(i in specials for i in ids)

        assert count(hostile, hostile) == count("harmless", "too")
        ids = style.encode_prompt(tokenizer, (Turn("user", hostile),))
        assert hostile[: -len("\ufdd0\ufdd1")] in tokenizer.decode(ids)


def test_what_templates_mark_is_learnt(folders: dict[str, Path]) -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'A:\n' }}{% generation %}{{ m.content }}<|end|>"
        "{% endgeneration %}{{ '\n' }}{% else %}{{ 'Q:\n' + m.content + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A:\n' }}{% endif %}"
    )  # fmt: skip
    from transformers import PreTrainedTokenizerFast

    tokenizer, style = Tokenizer(folders["byte-level"]), get_style(marked)
    model = PreTrainedTokenizerFast.from_pretrained(folders["byte-level"])
    messages = [{"role": turn.role, "content": turn.text} for turn in TALK]
    wanted = model.apply_chat_template(
        messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    [(ids, marks)] = style.encode(tokenizer, [TALK])
    assert ids == list(wanted["input_ids"])[: len(ids)]
    assert marks == [bool(mark) for mark in wanted["assistant_masks"]][: len(ids)]
    check_marks(style, tokenizer, TALK)


def test_a_template_without_an_end_gets_eos(folders: dict[str, Path]) -> None:
    style = get_style("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    tokenizer = Tokenizer(folders["byte-level"])
    check_marks(get_style(TEMPLATES["phi"]), tokenizer, TALK)
    [(ids, marks)] = style.encode(tokenizer, [TALK])
    assert [i for i, mark in zip(ids, marks, strict=True) if mark].count(tokenizer.eos_id) == 2
    assert style.stop_ids(tokenizer) == [tokenizer.eos_id]


def test_the_models_own_template(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template of its own; name a prompt style"):
        get_style("model", folders["prepend"])
    several = [{"name": "tools", "template": "{{ 1 }}"}, {"name": "default", "template": TEMPLATES["phi"]}]
    for content in (TEMPLATES["phi"], several):
        write_json(tmp_path / "tokenizer_config.json", {"chat_template": content})
        style = get_style("model", tmp_path)
        assert style.name == TEMPLATES["phi"]  # the text is what is stored
        assert get_style(style.name).prompt("a") == style.prompt("a")
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["zephyr"])
    assert get_style("model", tmp_path).name == TEMPLATES["zephyr"]
    assert get_style(str(tmp_path / "chat_template.jinja")).name == TEMPLATES["zephyr"]


def test_unknown_style_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'alpacca'; did you mean alpaca\? known are alpaca, dolly"):
        get_style("alpacca")
    with pytest.raises(UserError, match="no prompt style 'zzz'; known are"):
        get_style("zzz")


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], "no question"),
        ([SYSTEM], "no question"),
        ([Turn("usr", "a")], "turn 1 has the role 'usr'; did you mean user?"),
        ([Turn("user", " \n")], r"turn 1 \(user\) is empty"),
        ([TALK[0], Turn("assistant", "")], r"turn 2 \(assistant\) is empty"),
        ([TALK[0], TALK[1], TALK[1]], "turns 2 and 3 are both the assistant's"),
        ([TALK[0], TALK[0]], "turns 1 and 2 are both the user's"),
        ([TALK[0], SYSTEM], "turn 2 is the system's; only the first can be"),
    ],
)
def test_conversations_that_are_refused(turns: list[Turn], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        get_style("chatml").encode_prompt(None, tuple(turns))
    assert problem(tuple(turns))


def test_turns_that_a_style_does_not_have() -> None:
    with pytest.raises(UserError, match="redpajama has no turns of the system; these have: alpaca, dolly, chatml"):
        get_style("redpajama").encode_prompt(None, (SYSTEM, TALK[0]))
    with pytest.raises(UserError, match="alpaca has no turns of the tool; these have: chatml, llama3"):
        get_style("alpaca").encode_prompt(None, (*TALK[:2], Turn("tool", "1")))


def test_a_tokenizer_without_eos(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folders["byte-level"] / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="the tokenizer has no EOS token"):
        get_style("alpaca").encode(Tokenizer(tmp_path), [TALK])
    get_style("chatml").encode(Tokenizer(tmp_path), [TALK])  # has an end of its own
