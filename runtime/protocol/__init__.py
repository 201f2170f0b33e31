"""What spawn, join, return and end look like in the tokens a thread emits."""

from runtime.protocol.apr import APR, apr_protocol
from runtime.protocol.binding import BoundProtocol
from runtime.protocol.declaration import Definition, TagProtocol
from runtime.protocol.stop_strings import Both, StopStrings

__all__ = [
    "APR",
    "Both",
    "BoundProtocol",
    "Definition",
    "StopStrings",
    "TagProtocol",
    "apr_protocol",
]
