"""One file of what a page shows, its styles and its program: nothing else is loaded, and no text of a trace can run.

Texts are in a block of JSON, of which `<` and `&` are escaped, and are put into the page as text alone. The page's
policy names the one program and the one style sheet that may be used, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

import msgspec

from runtime.link import Trace
from traces.printing import Decode
from traces.web_page.content import content_of

_HERE = files("traces.web_page")


def page(trace: Trace, decode: Decode | None = None) -> str:
    """The page of a trace, as HTML; raises `TraceError` as `content_of` does."""
    data = msgspec.json.encode(content_of(trace, decode)).decode()
    for dangerous in "<>&\u2028\u2029":
        data = data.replace(dangerous, f"\\u{ord(dangerous):04x}")
    style, program = (_HERE.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    text = _HERE.joinpath("template.html").read_text(encoding="utf-8")
    rules = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(program)}'; base-uri 'none'"
    parts = {"POLICY": rules, "STYLE": style, "PROGRAM": program, "DATA": data}
    before, *after = text.split("{{")
    return before + "".join(parts[name] + rest for name, _, rest in (part.partition("}}") for part in after))


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
