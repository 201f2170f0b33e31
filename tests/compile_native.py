"""Compiles the native code of both weight types side by side, so that the processes that run tests find it on disk.

`python -m tests.compile_native`
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from runtime.backend.native.compiled import load_entries


def compile_for(narrow: bool) -> None:
    load_entries(narrow)


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as processes:
        list(processes.map(compile_for, [False, True]))
