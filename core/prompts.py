"""From what is said to the text that a model was trained on: conversation templates, and one user prompt in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from core.errors import GroundingError
from core.families.base import Family

IMAGE = "<image>"  # stands for the picture in the templates; LLaVA's image token
ANSWERS = "ASSISTANT:"  # the word behind which generation begins
_CONTENT = (  # a picture is on a line of its own, before the words
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>' if loop.last else '<image>\\n' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)
_VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
    "{{ s if s is string else s[0]['text'] }}{% else %}SYSTEM{% endif %} "
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ 'USER:' if m['role'] == 'user' else 'ASSISTANT:' }}"
    "{% if m['content'] %} " + _CONTENT + "{{ ' ' if m['role'] == 'user' else eos_token }}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
TEMPLATES = {  # name: chat template (Jinja), as a processor keeps it
    "llava_v1": _VICUNA.replace("SYSTEM", _SYSTEM),
    "vicuna_v1": _VICUNA.replace("SYSTEM", _SYSTEM.replace("human", "user")),
    "plain": (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('it takes no system prompt') }}{% endif %}"
        + _CONTENT.replace("\\n", "")
        + "{{ '\\n' if m['role'] == 'assistant' }}{% endfor %}"
    ),
}


def adopt_template(processor: Any, name: str) -> None:
    """Make a named template the one that a checkpoint is asked with, in place; `save_pretrained` writes it.

    Raises:
        GroundingError: there is no such template.
    """
    if name not in TEMPLATES:
        raise GroundingError(f"unknown template {name!r}; use one of {', '.join(TEMPLATES)}")
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATES[name]
    keep_image_gap(processor.tokenizer)


def conversation_text(
    writer: Any, conversation: list[dict[str, Any]], template: str | None = None, *, ask: bool = False
) -> str:
    """A conversation as the text that training shows and generation continues.

    Args:
        writer: a processor or a tokenizer.
        conversation: `{"role", "content"}` messages as transformers' chat templates take them.
        template: a chat template; None for the writer's own.
        ask: end where the next answer begins.

    Raises:
        GroundingError: the template refuses the conversation.

    Source: transformers' chat templates; `TEMPLATES` write what LLaVA's conversation templates of those names do.
    """
    from jinja2 import TemplateError

    try:
        return writer.apply_chat_template(
            conversation, chat_template=template, add_generation_prompt=ask, tokenize=False
        )
    except TemplateError as error:
        raise GroundingError(f"the chat template refuses this conversation ({error}); pass template=") from error


def image_gap(tokenizer: Any, image: str) -> str:
    """What has to stand between the image token and the text behind it, "" or " ".

    LLaVA tokenises the text behind a picture on its own. A sentencepiece tokenizer begins every text with the token of
    a space, "▁" (29871 in front of a line break with Llama's), where transformers' Llama tokenizer does so at the very
    beginning only; a space makes up for it. A checkpoint's tokenizer_config.json says under "image_gap" what it was
    trained with; where it says nothing (the hub's), training takes what LLaVA's training would.

    Source: LLaVA's `tokenizer_image_token`.
    """
    kept = tokenizer.init_kwargs.get("image_gap")
    if kept is not None:
        return kept
    alone = tokenizer("a", add_special_tokens=False).input_ids
    behind = [tokenizer(f"{image}{gap}a", add_special_tokens=False).input_ids[1:] for gap in ("", " ")]
    return " " if alone == behind[1] != behind[0] else ""


def keep_image_gap(tokenizer: Any) -> None:
    """Write what training puts behind pictures into the tokenizer, which is then asked so, and saves it."""
    tokenizer.init_kwargs["image_gap"] = image_gap(tokenizer, IMAGE)


def asked_gap(tokenizer: Any) -> str:
    """What a checkpoint is asked with behind the picture: what it says it was trained with, or else nothing, so that
    other checkpoints are asked as transformers asks them."""
    return tokenizer.init_kwargs.get("image_gap", "")


def space_images(text: str, tokenizer: Any, image: str, *, gap: str) -> str:
    """The text with the gap behind every picture that text, not another token, follows."""
    if image not in text or not gap:
        return text
    tokens = "|".join(map(re.escape, {image, *tokenizer.all_special_tokens}))
    return re.sub(rf"({re.escape(image)})(?!{tokens}|\Z)", rf"\1{gap}", text)


def begins_with_bos(text: str, tokenizer: Any) -> bool:
    """Whether a text has the first token in it, which the tokenizer must then not write again."""
    bos = tokenizer.bos_token
    return bool(bos) and text.startswith(bos)


def render_prompt(
    prompt: str, family: Family, *, template: str | None = None, system: str | None = None, images: int = 1
) -> str:
    """The full text of one conversation turn, with one image placeholder for each image.

    Args:
        prompt: the user's words. With the family's image placeholder in it, it is used verbatim.
        family: the model's adapter.
        template: a name in `TEMPLATES`, or a text with `{image}`, `{prompt}` and, optionally, `{system}`; None for
            the processor's chat template, which a checkpoint brings with it.
        system: the system prompt, in place of the template's own.
        images: how many images the turn has; they stand before the words, unless the prompt places them itself.

    Raises:
        GroundingError: another number of placeholders; no chat template; a template without its fields; a system prompt
            where nothing takes it.

    Source: LLaVA's conversation templates; transformers' chat templates.
    """
    found = prompt.count(family.placeholder)
    if found not in (0, images):
        raise GroundingError(
            f"the prompt holds {found} image placeholders {family.placeholder!r} for {images} image(s); write one for "
            "each, or none (several images for one prompt are given as a list within the list)"
        )
    if found:
        if system is not None:
            raise GroundingError(
                f"the prompt holds {family.placeholder!r} and is used verbatim; write the system prompt into it"
            )
        return prompt
    if template is not None and template not in TEMPLATES:
        return _fill(template, prompt, family, system, images)
    if template is not None:
        template = TEMPLATES[template].replace(IMAGE, _block(family))
    elif family.template is not None and not _chat_template(family.processor):
        return _fill(family.template, prompt, family, system, images)
    return _chat(prompt, family, template, system, images)


def messages(turns: Sequence[tuple[str, str | None]], *, picture: int | None) -> list[dict[str, Any]]:
    """(question, answer) pairs as messages, the picture before the words of question number `picture`.

    An empty text is a message without content; an answer that is None is none.
    """
    conversation = []
    for number, turn in enumerate(turns):
        for role, text in zip(("user", "assistant"), turn, strict=True):
            content = [{"type": "image"}] if role == "user" and number == picture else []
            content += [{"type": "text", "text": text}] if text else []
            if text is not None:
                conversation.append({"role": role, "content": content})
    return conversation


def _block(family: Family) -> str:
    return family.image_block.format(placeholder=family.placeholder)


def _fill(template: str, prompt: str, family: Family, system: str | None, images: int) -> str:
    fields = set(re.findall(r"\{(image|prompt|system)\}", template))
    if not {"image", "prompt"} <= fields:
        raise GroundingError(
            f"the template {template!r} is neither one of {', '.join(TEMPLATES)} nor a text with {{image}} and "
            "{prompt}"
        )
    if ("system" in fields) != (system is not None):
        action = "give system=" if system is None else "add {system} to it"
        raise GroundingError(f"the template {template!r} and system={system!r} do not go together; {action}")
    values = {"image": "\n".join([_block(family)] * images), "prompt": prompt, "system": system}
    return re.sub(r"\{(image|prompt|system)\}", lambda match: values[match[1]], template)


def _chat(prompt: str, family: Family, template: str | None, system: str | None, images: int) -> str:
    processor = family.processor
    template = template or _chat_template(processor)
    if not template:
        raise GroundingError(
            f"this model has no chat template; pass template= (one of {', '.join(TEMPLATES)}, or a text with {{image}} "
            f"and {{prompt}}), or write {family.placeholder!r} into the prompt to have it used verbatim"
        )
    conversation: list[dict[str, Any]] = []
    if system is not None:
        conversation.append({"role": "system", "content": [{"type": "text", "text": system}]})
    content = [*[{"type": "image"}] * images, {"type": "text", "text": prompt}]
    conversation.append({"role": "user", "content": content})
    text = conversation_text(processor, conversation, template, ask=True)
    if text.count(family.placeholder) != images:
        raise GroundingError(
            f"the model's chat template wrote the image placeholder {family.placeholder!r} "
            f"{text.count(family.placeholder)} times instead of {images}; pass template="
        )
    return text


def _chat_template(processor: Any) -> str | None:
    return processor.chat_template or processor.tokenizer.chat_template


def text_after_answer(family: Family) -> str:
    """What the processor's chat template writes behind an answer; "" without a template, or where it refuses."""
    answer, processor = "[answer]", family.processor
    turns = [{"role": role, "content": [{"type": "text", "text": answer}]} for role in ("user", "assistant")]
    template = _chat_template(processor)
    try:
        return conversation_text(processor, turns, template).rpartition(answer)[2] if template else ""
    except GroundingError:
        return ""
