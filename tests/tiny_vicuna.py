"""A directory like Vicuna's on the hub: tiny weights, and of the tokenizer only sentencepiece's tokenizer.model."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import torch
from tiny_models import CORPUS, _llama

TOKENS = {  # as in Vicuna's tokenizer_config.json
    f"{name}_token": {
        "__type": "AddedToken",
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    for name, text in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))
}


def tiny_vicuna(directory: Path, *, legacy: bool = False) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(sentencepiece_model())
    settings = {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": legacy}
    settings |= {
        "model_max_length": 4096,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | TOKENS))
    names = {name: token["content"] for name, token in TOKENS.items()} | {"pad_token": "<unk>"}
    (directory / "special_tokens_map.json").write_text(json.dumps(names))
    size = Pieces(directory / "tokenizer.model").size
    text = {key: value for key, value in _llama(size).items() if key != "model_type"}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**text)).save_pretrained(directory)
    return directory


def sentencepiece_model() -> bytes:
    """BPE with the options of Llama's, and like Llama's with "USER" in one piece but "▁USER" in two."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    texts = [text.replace("USER: ASSISTANT:", "U S E R A SSISTANT :") for text in CORPUS] * 4
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=file,
        vocab_size=460,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(file.getvalue())
    known = {piece.piece for piece in model.pieces}
    for score, text in enumerate(("USER", "▁US", "ER", "US")):
        assert text not in known
        model.pieces.add(piece=text, score=1.0 + score)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


class Pieces:
    """Ids as LLaVA's slow Llama tokenizer (legacy=False) makes them, on the sentencepiece library."""

    def __init__(self, file: Path):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
        model.normalizer_spec.add_dummy_prefix = False
        self.model = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        self.size = self.model.vocab_size()

    def __call__(self, text: str) -> list[int]:
        """A space in front, then piece by piece between the special tokens; "<s>" before all."""
        parts = re.split("(<s>|</s>|<unk>)", f" {text}" if text else "")
        if len(parts) > 1 and parts[0] == " ":
            parts[0] = ""
        special = {"<unk>": 0, "<s>": 1, "</s>": 2}
        ids = [1]
        for part in parts:
            ids += [special[part]] if part in special else self.model.encode(part)
        return ids
