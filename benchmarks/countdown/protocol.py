"""How Countdown threads spawn, join and return; goes into the checkpoint's braid.json."""

from __future__ import annotations

from examples.countdown.vocabulary import END, JOIN, MESSAGE, MESSAGE_END, SPAWN, SPAWN_END, WIN
from runtime import TagProtocol

MOST_MESSAGES = 3
"""How many children's paths a thread is given at its join."""

COUNTDOWN = TagProtocol(
    spawn_open=SPAWN,
    spawn_close=SPAWN_END,
    join=JOIN,
    return_open=WIN,
    end=(END,),
    forbidden=(MESSAGE, MESSAGE_END),
    delivered=f"{MESSAGE} {{message}} {MESSAGE_END} ",
    most_messages=MOST_MESSAGES,
    longest_message=32,
    on_malformed="ignore",
)
