"""What spawn, join, return and end look like in the tokens a thread emits."""

from runtime.protocol.apr import APR, apr_protocol
from runtime.protocol.binding import BoundProtocol
from runtime.protocol.declaration import Definition, TagProtocol
from runtime.protocol.forking import NPR, BoundForkProtocol, ForkProtocol, Multiverse, ParallelR1, ThreadWeaver
from runtime.protocol.stop_strings import Both, StopStrings
from runtime.protocol.tool_tags import HERMES, BoundToolProtocol, BoundToolTags, ToolProtocol, ToolTags
from runtime.protocol.tool_watcher import Resumed

AnyProtocol = BoundProtocol | BoundForkProtocol | BoundToolProtocol

__all__ = [
    "APR",
    "HERMES",
    "NPR",
    "AnyProtocol",
    "Both",
    "BoundForkProtocol",
    "BoundProtocol",
    "BoundToolProtocol",
    "BoundToolTags",
    "Definition",
    "ForkProtocol",
    "Multiverse",
    "ParallelR1",
    "Resumed",
    "StopStrings",
    "TagProtocol",
    "ThreadWeaver",
    "ToolProtocol",
    "ToolTags",
    "apr_protocol",
]
