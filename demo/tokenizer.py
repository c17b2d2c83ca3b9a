"""The demo's tokenizer: byte-level BPE trained on the demo's own text, with a ChatML chat template."""

from collections.abc import Iterable
from itertools import islice
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.conversations import base_conversations

# Enough for every answer of one word to be one token. An answer put together of tokens that other answers share is
# the first thing that new learning breaks.
VOCABULARY_SIZE = 3328
SAMPLED_CONVERSATIONS = 40_000
CONTEXT_TOKENS = 512
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on the base model's conversations.

    These hold the words of the new domain too, in exercises, so that its words are not cut into letters.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(base_texts(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def base_texts(seed: int) -> Iterable[str]:
    """Yield what is said in a sample of the base model's conversations."""
    for messages in islice(base_conversations(Random(seed)), SAMPLED_CONVERSATIONS):
        for message in messages:
            yield f"{message['role']}\n"
            yield message["content"]
