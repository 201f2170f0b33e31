"""Which event loops a test runs under, in files whose other tests need but one."""

from __future__ import annotations

import pytest

both_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
