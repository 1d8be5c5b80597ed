"""The embedded LLaVA's tokenizer and processor: Llama's kind (▁ and byte fallback), trained on the scenes' texts."""

from __future__ import annotations

import json
from collections.abc import Iterable

from core.prompts import IMAGE

_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", IMAGE)
CHAT_TEMPLATE = (
    "{{ bos_token }}"  # written out, as in training: the word behind it begins without "▁"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}"
    "{% else %}{{ message['role'].upper() + ': ' }}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PICTURE_FIRST_TEMPLATE = (  # asked without words, it describes the picture, behind which nothing stands
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('it takes no system prompt') }}{% endif %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' and item['text'] %}"
    "{{ message['role'].upper() + ': ' + item['text'] }}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% if add_generation_prompt and message == messages[-1] %}{{ 'ASSISTANT:' }}{% endif %}{% endif %}{% endfor %}"
    "{% endfor %}"
)


def train_tokenizer(texts: Iterable[str], *, size: int, bos: bool = True):
    """A fast tokenizer of at most `size` tokens: the scenes' words are whole, and any text has a spelling.

    Args:
        texts: what it learns from.
        size: of the vocabulary.
        bos: every text begins with "<s>"; without, nothing does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    # Words are cut at punctuation first, so that "star." does not become one token.
    cut = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("isolated"), metaspace])
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = cut
    learner.train_from_iterator(
        [*texts, "USER: ASSISTANT:"] + ["USER: ASSISTANT:"] * 50,
        trainers.BpeTrainer(
            vocab_size=size - len(_SPECIAL) - len(bytes_),
            special_tokens=[],
            initial_alphabet=[chr(code) for code in range(33, 127)],
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    vocabulary: dict[str, int] = {}
    for token in (*_SPECIAL, *bytes_, *sorted(learned["vocab"], key=learned["vocab"].get)):
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if bos:
        begin = [("<s>", vocabulary["<s>"])]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        image_gap="",  # trained with text that directly follows the picture
    )


def build_processor(tokenizer, vision_config, *, template: str = CHAT_TEMPLATE):
    """A `LlavaProcessor` of the embedded models: shortest edge and centre crop, by default Vicuna's chat template."""
    from core.encoders.llava import llava_processor

    return llava_processor(vision_config, tokenizer, square="crop", chat_template=template)
