"""Tokenizers made on the spot, of the classes that CLIP, T5 and Qwen2 have: one token for each word
of the embedded prompts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, T5Tokenizer

WORDS: tuple[str, ...] = (
    *("the", "number", "in", "on", "a", "left", "of", "above"),
    *("circle", "square", "triangle", "star"),
    *("red", "green", "blue", "yellow", "purple", "orange", "black", "white", "pink", "cyan"),
)
DIGITS: tuple[str, ...] = tuple("0123456789")

TEXT_TOKENS = 16  # both tokenizers pad and truncate to this length

_CLIP_BOS = "<|startoftext|>"
_CLIP_EOS = "<|endoftext|>"
_CLIP_UNK = "<unk>"
_CLIP_WORD_END = "</w>"
# Every character that ends a word. The trainer of the merges would number them in random order;
# this one is that of the embedded model's weights.
_LAST_CHARACTERS = "et031d9nrka7264fw58"
_T5_PAD = "<pad>"
_T5_EOS = "</s>"
_T5_UNK = "<unk>"
_T5_SPACE = "▁"


def make_clip_tokenizer(length: int = TEXT_TOKENS) -> CLIPTokenizer:
    """Return a ``CLIPTokenizer`` with one token for each caption word and each digit.

    Its byte-pair merges are learnt from the words alone. An unknown word falls into its known
    pieces and ``<unk>``.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    first_tokens = [_CLIP_BOS, _CLIP_EOS, _CLIP_UNK, *sorted({*"".join(WORDS), *DIGITS})]
    backend = Tokenizer(BPE(unk_token=_CLIP_UNK, end_of_word_suffix=_CLIP_WORD_END))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = BpeTrainer(
        special_tokens=[
            *first_tokens,
            *(character + _CLIP_WORD_END for character in _LAST_CHARACTERS),
        ],
        end_of_word_suffix=_CLIP_WORD_END,
        min_frequency=1,
        vocab_size=1000,
        show_progress=False,
    )
    backend.train_from_iterator([*WORDS, *DIGITS], trainer)
    model = json.loads(backend.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        bos_token=_CLIP_BOS,
        eos_token=_CLIP_EOS,
        pad_token=_CLIP_EOS,
        unk_token=_CLIP_UNK,
        model_max_length=length,
    )


def make_t5_tokenizer(length: int = TEXT_TOKENS) -> T5Tokenizer:
    """Return a ``T5Tokenizer`` with one token for each caption word and each digit.

    A number becomes the space mark and its digits; an unknown word ends in ``<unk>``.
    """
    from transformers import T5Tokenizer

    vocab = [(_T5_PAD, 0.0), (_T5_EOS, 0.0), (_T5_UNK, 0.0), (_T5_SPACE, -2.0)]
    vocab += [(_T5_SPACE + word, -1.0) for word in WORDS]
    vocab += [(digit, -1.0) for digit in DIGITS]
    return T5Tokenizer(
        vocab=vocab,
        extra_ids=0,
        pad_token=_T5_PAD,
        eos_token=_T5_EOS,
        unk_token=_T5_UNK,
        model_max_length=length,
    )


DESCRIBING = (
    "system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:\nuser\n"
    "assistant\n"
)
"""What Qwen-Image's pipeline says around a prompt."""


def make_qwen_tokenizer(instruction: str = DESCRIBING, more: tuple[str, ...] = ()) -> Any:
    """A Qwen2Tokenizer with one token for each word of the pipeline's instruction, so that it has
    as many as the real one. more: special tokens beside those of a chat."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        vocab_size=2000,
        show_progress=False,
    )
    backend.train_from_iterator(
        [instruction, *(f" {word} {word}" for word in (*WORDS, *DIGITS))], trainer
    )
    model = json.loads(backend.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        additional_special_tokens=special[1:],
        model_max_length=4096,
    )


def make_qwen3_tokenizer() -> Any:
    """A Qwen2Tokenizer that asks in Qwen3's way: one turn of a user, with or without a place to
    think before the answer."""
    found = make_qwen_tokenizer()
    found.add_tokens(["<think>", "</think>"])
    found.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    return found
