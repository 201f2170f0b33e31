"""What spawn, join, return and end look like in the tokens a thread emits."""

from runtime.protocol.apr import APR, apr_protocol
from runtime.protocol.binding import BoundProtocol
from runtime.protocol.declaration import Definition, TagProtocol
from runtime.protocol.forking import NPR, BoundForkProtocol, ForkProtocol, Multiverse, ParallelR1, ThreadWeaver
from runtime.protocol.stop_strings import Both, StopStrings

__all__ = [
    "APR",
    "NPR",
    "Both",
    "BoundForkProtocol",
    "BoundProtocol",
    "Definition",
    "ForkProtocol",
    "Multiverse",
    "ParallelR1",
    "StopStrings",
    "TagProtocol",
    "ThreadWeaver",
    "apr_protocol",
]
