"""From a user's prompt to the text that a model was trained to answer."""

from __future__ import annotations

import re
from typing import Any

from core.errors import GroundingError
from core.families.base import Family

LLAVA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
TEMPLATES = {  # name: (format string, system prompt)
    "llava_v1": ("{system} USER: {image}\n{prompt} ASSISTANT:", LLAVA_SYSTEM),
    "vicuna_v1": ("{system} USER: {image}\n{prompt} ASSISTANT:", LLAVA_SYSTEM.replace("human", "user")),
    "plain": ("{image}{prompt}", None),
}


def render_prompt(prompt: str, family: Family, *, template: str | None = None, system: str | None = None) -> str:
    """The full text of one conversation turn, with the image placeholder in it once.

    Args:
        prompt: the user's words. With the family's image placeholder in it, it is used verbatim.
        family: the model's adapter.
        template: a name in `TEMPLATES`, or a text with `{image}`, `{prompt}` and, optionally, `{system}`; None for
            the processor's chat template.
        system: the system prompt, in place of the template's own.

    Raises:
        GroundingError: several placeholders; no chat template; a template without its fields; a system prompt where
            nothing takes it.

    Source: LLaVA's conversation templates; transformers' chat templates.
    """
    found = prompt.count(family.placeholder)
    if found > 1:
        raise GroundingError(
            f"the prompt holds {found} image placeholders {family.placeholder!r}; one image per prompt is supported"
        )
    if found == 1:
        if system is not None:
            raise GroundingError(
                f"the prompt holds {family.placeholder!r} and is used verbatim; write the system prompt into it"
            )
        return prompt
    if template is not None:
        return _fill(template, prompt, family, system)
    return _chat(prompt, family, system)


def _fill(template: str, prompt: str, family: Family, system: str | None) -> str:
    text, default = TEMPLATES.get(template, (template, None))
    fields = set(re.findall(r"\{(image|prompt|system)\}", text))
    if not {"image", "prompt"} <= fields:
        raise GroundingError(
            f"the template {template!r} is neither one of {', '.join(TEMPLATES)} nor a text with {{image}} and "
            "{prompt}"
        )
    system = default if system is None else system
    if ("system" in fields) != (system is not None):
        action = "give system=" if system is None else "add {system} to it"
        raise GroundingError(f"the template {template!r} and system={system!r} do not go together; {action}")
    image = family.image_block.format(placeholder=family.placeholder)
    values = {"image": image, "prompt": prompt, "system": system}
    return re.sub(r"\{(image|prompt|system)\}", lambda match: values[match[1]], text)


def _chat(prompt: str, family: Family, system: str | None) -> str:
    from jinja2 import TemplateError

    processor = family.processor
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise GroundingError(
            f"this model has no chat template; pass template= (one of {', '.join(TEMPLATES)}, or a text with {{image}} "
            f"and {{prompt}}), or write {family.placeholder!r} into the prompt to have it used verbatim"
        )
    conversation: list[dict[str, Any]] = []
    if system is not None:
        conversation.append({"role": "system", "content": [{"type": "text", "text": system}]})
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    conversation.append({"role": "user", "content": content})
    try:
        text = _apply(processor, conversation, add_generation_prompt=True)
    except TemplateError as error:
        raise GroundingError(
            f"the model's chat template refuses this conversation ({error}); pass template="
        ) from error
    if text.count(family.placeholder) != 1:
        raise GroundingError(
            f"the model's chat template wrote the image placeholder {family.placeholder!r} "
            f"{text.count(family.placeholder)} times instead of once; pass template="
        )
    return text


def text_after_answer(family: Family) -> str:
    """What the processor's chat template writes behind an answer; "" without a template, or where it refuses."""
    from jinja2 import TemplateError

    answer = "[answer]"
    turns = [{"role": role, "content": [{"type": "text", "text": answer}]} for role in ("user", "assistant")]
    try:
        return _apply(family.processor, turns).rpartition(answer)[2]
    except (TemplateError, ValueError):  # ValueError: there is no template
        return ""


def _apply(processor: Any, conversation: list[dict[str, Any]], **options: Any) -> str:
    template = processor.chat_template or processor.tokenizer.chat_template
    return processor.apply_chat_template(conversation, chat_template=template, tokenize=False, **options)
