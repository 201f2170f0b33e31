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
CHILDREN, NESTED, WITHIN, PAIR = "children", "nested", "within", "P"
WINDOWS = (128, 192, 256, 320, 512, 1024, 4096)
"""What a serial thread can be told about the longest context it may have."""

MOST_CHILDREN = 12
"""The largest budget of children that a thread can be told."""

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
    CHILDREN,
    NESTED,
    WITHIN,
    PAIR,
    *(str(window) for window in WINDOWS if window > LARGEST_VALUE),
)
"""Position in this tuple is the token id; numbers are their own ids."""

ID_OF: dict[str, int] = {word: index for index, word in enumerate(WORDS)}


def build_tokenizer() -> Tokenizer:
    """One token per number and symbol, split at spaces; joining words with spaces gives the text back."""
    tokenizer = Tokenizer(models.WordLevel(ID_OF, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
