"""The words of the Countdown language, and the tokenizer that maps them to ids."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers

from examples.countdown.problems import LARGEST_VALUE, OPERATORS

ARROW = "->"
QUESTION = "Q"
SPAWN, SPAWN_END = "<spawn>", "</spawn>"
JOIN = "<join>"
MESSAGE, MESSAGE_END = "<message>", "</message>"
WIN, END = "<win>", "<end>"
UNKNOWN = "<unknown>"

WORDS: tuple[str, ...] = (
    *map(str, range(LARGEST_VALUE + 1)),
    *OPERATORS,
    ARROW,
    QUESTION,
    SPAWN,
    SPAWN_END,
    JOIN,
    MESSAGE,
    MESSAGE_END,
    WIN,
    END,
    UNKNOWN,
)
"""Position in this tuple is the token id; numbers are their own ids."""

ID_OF: dict[str, int] = {word: index for index, word in enumerate(WORDS)}


def build_tokenizer() -> Tokenizer:
    """One token per number and symbol, split at spaces; joining words with spaces gives the text back."""
    tokenizer = Tokenizer(models.WordLevel(ID_OF, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
