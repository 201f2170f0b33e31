"""Small tokenizers of every kind that checkpoints come with, and directories that transformers reads them from."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIALS = ["<unk>", "<s>", "</s>"]
LINES = ["the café, the naïve thé", "it's a cat. a cat sat!", "日本語 日本 語", "🧵🧵 🪢"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """GPT-2's kind, with few merges, so that tokens end inside characters."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=290, initial_alphabet=alphabet, special_tokens=["</s>", "<s>"], show_progress=False
        ),
    )
    return inner


def spaced_byte_level() -> Tokenizer:
    """The same with a space put before texts."""
    inner = byte_level()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return inner


def byte_fallback() -> Tokenizer:
    """Llama 2's kind: a mark for spaces, put before texts by a normalizer, and bytes for what has no token."""
    inner = _pieces()
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return inner


def metaspace() -> Tokenizer:
    """SentencePiece's kind: the mark is put by the pre-tokenizer, before the first word alone."""
    inner = _pieces()
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return inner


def unigram() -> Tokenizer:
    """T5's kind: words are cut apart, and each gets the mark."""
    pieces = [("▁", -2.0), ("▁the", -3.0), ("▁a", -3.0), ("cat", -3.0), ("sat", -3.0)]
    letters = [(letter, -6.0) for letter in sorted(set("".join(LINES)) - {" "})]
    inner = Tokenizer(models.Unigram([*((token, 0.0) for token in SPECIALS), *pieces, *letters], unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return inner


def byte_unigram() -> Tokenizer:
    """SentencePiece's other kind, with bytes for what has no piece."""
    pieces = [("▁", -2.0), ("▁the", -3.0), ("▁a", -3.0), ("cat", -3.0), *((letter, -4.0) for letter in "the")]
    inner = Tokenizer(
        models.Unigram(
            [*((token, 0.0) for token in SPECIALS), *((byte, -9.0) for byte in BYTES), *pieces],
            unk_id=0,
            byte_fallback=True,
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    return inner


def word_piece() -> Tokenizer:
    """BERT's kind: "##" goes on with a word, and spaces are put between tokens."""
    letters = sorted(set("".join(LINES)) - {" "})
    words = [*SPECIALS, "the", "cat", "sat", "##at", "n", "'", "t", *letters, *(f"##{letter}" for letter in letters)]
    inner = Tokenizer(models.WordPiece(_numbered(words), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return inner


def word_level() -> Tokenizer:
    """A token a word, and no decoder."""
    words = [*SPECIALS, *dict.fromkeys(" ".join(LINES).split()), "a", "."]
    inner = Tokenizer(models.WordLevel(_numbered(words), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return inner


KINDS = (byte_level, spaced_byte_level, byte_fallback, metaspace, unigram, byte_unigram, word_piece, word_level)


def write_directory(directory: Path, inner: Tokenizer, **config: object) -> Path:
    """What `AutoTokenizer` reads: the tokenizer, a `tokenizer_config.json` with these keys, and a model's config."""
    directory.mkdir(exist_ok=True)
    inner.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
    )
    return directory


def _pieces() -> Tokenizer:
    merges = [("▁", "t"), ("▁", "a"), ("c", "a"), ("ca", "t"), ("▁", "cat"), ("▁", "▁")]
    pieces = [*SPECIALS, *BYTES, "▁", *sorted(set("thecatsi,.!'n")), *("".join(merge) for merge in merges)]
    inner = Tokenizer(models.BPE(_numbered(pieces), merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.add_special_tokens(SPECIALS)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner


def _numbered(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(dict.fromkeys(words))}
