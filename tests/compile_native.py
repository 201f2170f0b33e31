"""Compiles the native code of both weight types, so that the processes that run tests find it on disk.

`python -m tests.compile_native`
"""

from __future__ import annotations

from runtime.backend.native.compiled import load_native_functions

if __name__ == "__main__":
    for narrow in (False, True):
        load_native_functions(narrow)
