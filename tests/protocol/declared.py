"""Protocols that are declared on text: tags of several tokens, and blocks that are cut out."""

from __future__ import annotations

from runtime.protocol import TagProtocol

TEXT = TagProtocol(
    spawn_open="<sp>",
    spawn_close="</sp>",
    join="<wait>",
    return_open="[[",
    return_close="]]",
    end=("<stop>",),
    forbidden=("<got>",),
    delivered="<got>{index}:{message}</got>\n",
    joined="\n{children}",
)

BLOCKS = TagProtocol(
    block_open="<par>",
    block_close="</par>",
    cuts_block=True,
    spawn_open="* ",
    spawn_close="\n",
    return_pattern=r"(?s)answer: (?P<message>.*)",
    end=("<stop>",),
    delivered="- {message}\n",
    joined="<res>\n{children}</res>",
)
