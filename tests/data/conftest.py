"""Small tokenizers of several kinds with the turn formats of several model families, and row helpers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The chemical symbol of iron is Fe. What is the capital of France? Paris.\n\n",
    "user assistant system model think hello world question answer\n",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2.5: a default system prompt.
CHATML_DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
)
# Qwen3: turns before the last question lose their reasoning, the last one always has a think block.
QWEN3 = """{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set content = m.content -%}{%- set reasoning = m.reasoning_content if m.reasoning_content else '' -%}
{%- if not reasoning and '</think>' in content -%}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > ns.last and (loop.last or reasoning) -%}
{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}
{%- else -%}{{- content -}}{%- endif -%}{{- '<|im_end|>\\n' -}}
{%- else -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
# DeepSeek R1: the prompt opens a think block that rendered turns do not have.
OPEN_THINK = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Mistral: no generation prompt, strict alternation, the system message inside the last question.
MISTRAL = """{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}
{%- set rest = messages[1:] -%}
{%- else -%}{%- set rest = messages -%}{%- endif -%}
{%- for m in rest -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate') -}}
{%- endif -%}
{%- if m.role == 'user' -%}
{{- '[INST] ' -}}
{%- if system is defined and loop.index0 >= rest | length - 2 -%}{{- system + '\\n\\n' -}}{%- endif -%}
{{- m.content + ' [/INST]' -}}
{%- else -%}{{- ' ' + m.content | trim + '</s>' -}}{%- endif -%}
{%- endfor -%}"""
# Gemma: another closing token than EOS, no system role.
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' "
    "+ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Granite 3, Phi 3.
GRANITE = (
    "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
NO_CLOSING = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
# Writes something that depends on the content.
COUNTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ m.content | length }}<|im_end|>\n{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The template itself marks what the model writes.
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% else %}{{ m.content }}<|im_end|>{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION_WITHOUT_CLOSING = GENERATION.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
# Looks into the contents: what comes before an answer depends on the question.
ECHO = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '?' not in messages[loop.index0 - 1].content %}No question. {% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Closes the last turn in another way than those before.
CLOSED_LAST = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if loop.last %}<|im_end|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "CLOSED_LAST": CLOSED_LAST,
    "GENERATION": GENERATION,
    "GENERATION_WITHOUT_CLOSING": GENERATION_WITHOUT_CLOSING,
    "ECHO": ECHO,
    "CHATML": CHATML,
    "CHATML_DEFAULT_SYSTEM": CHATML_DEFAULT_SYSTEM,
    "QWEN3": QWEN3,
    "OPEN_THINK": OPEN_THINK,
    "LLAMA3": LLAMA3,
    "MISTRAL": MISTRAL,
    "GEMMA": GEMMA,
    "GRANITE": GRANITE,
    "PHI3": PHI3,
    "NO_CLOSING": NO_CLOSING,
    "COUNTING": COUNTING,
    "NO_SYSTEM": NO_SYSTEM,
}
END = "<|endoftext|>"
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "</s>",
    "<start_of_turn>", "<end_of_turn>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|user|>",
    "<|assistant|>", "<|system|>", "<|end|>",
]  # fmt: skip


def byte_level(vocab_size: int, *, trim_offsets: bool = False) -> Tokenizer:
    """Train the kind of GPT-2, Qwen and Llama 3; those of Llama 3 and GPT-2 leave spaces out of their offsets."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    return core


def byte_fallback() -> Tokenizer:
    """Make the kind of Llama 2 and Gemma: BPE over words with a mark for the space before, bytes for what is rare."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    trained = orjson.loads(words.to_str())["model"]
    pieces = ["<unk>", *SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *trained["vocab"]]
    core = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(pair) for pair in trained["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", *SPECIAL_TOKENS])
    return core


def unigram() -> Tokenizer:
    """Make the kind of T5: a Unigram model, which finds pieces such as ``</s>`` in a text by itself."""
    words = Tokenizer(models.Unigram())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=100, show_progress=False))
    trained = orjson.loads(words.to_str())["model"]["vocab"]
    rare = ["<unk>", *SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = [*((piece, 0.0) for piece in rare), *map(tuple, trained)]
    core = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    core.add_special_tokens(["<unk>", *SPECIAL_TOKENS])
    return core


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(400),
    "bytes": lambda: byte_level(0),
    "trimmed offsets": lambda: byte_level(400, trim_offsets=True),
    "byte fallback": byte_fallback,
    "unigram": unigram,
}


def make_tokenizer(chat_template: str | None, kind: str = "byte-level") -> PreTrainedTokenizerFast:
    """Make a tokenizer of some hundred tokens and give it ``chat_template``."""
    core = KINDS[kind]()
    # Tokens, but no control tokens: reasoning models add such.
    core.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Save a tokenizer with the chat template of the given name, of the given kind, and return its folder."""
    folders: dict[tuple[str | None, str], str] = {}

    def save(name: str | None, kind: str = "byte-level") -> str:
        if (name, kind) not in folders:
            folders[name, kind] = str(tmp_path_factory.mktemp("tokenizer"))
            make_tokenizer(TEMPLATES[name] if name else None, kind).save_pretrained(folders[name, kind])
        return folders[name, kind]

    return save


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write objects as JSON Lines, strings and bytes as they are, and return the file."""

    def write(*rows: Mapping[str, Any] | str | bytes, name: str = "valid.jsonl") -> Path:
        lines = [
            row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else orjson.dumps(row)
            for row in rows
        ]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture
def conversation() -> Callable[..., dict[str, Any]]:
    """Make a row whose contents alternate between user and assistant."""

    def make(*contents: str, system: str | None = None, **row: Any) -> dict[str, Any]:
        messages = [{"role": "system", "content": system}] if system else []
        for index, content in enumerate(contents):
            messages.append({"role": "assistant" if index % 2 else "user", "content": content})
        return {"messages": messages, **row}

    return make
