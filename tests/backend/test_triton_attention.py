"""The Triton kernels, run and compiled in processes of their own: how Triton works is settled when it is imported."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.backend.torch.triton_attention import TritonAttention, triton_attention

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(*arguments: str, **environment: str) -> str:
    """What a Python process printed; fails with it if the process failed."""
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@needs_triton
def test_the_kernels_do_what_the_interface_says() -> None:
    interpret = "0" if torch.cuda.is_available() else "1"
    tests = str(HERE / "triton_kernels.py")
    printed = run("-m", "pytest", "-p", "no:cacheprovider", tests, TRITON_INTERPRET=interpret)
    assert re.search(r"^\d+ passed in", printed, re.MULTILINE), printed


@needs_triton
def test_the_kernels_compile_for_devices_that_are_not_here(tmp_path: Path) -> None:
    printed = run("-m", "tests.backend.compile_triton", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    for device in ("sm_80", "sm_90"):
        assert printed.count(f"attend {device}") == 6
        # A block of keys and one of values, both in flight twice, leave room for a second program on any device.
        shared = [int(number) for number in re.findall(rf"attend {device} .*: (\d+) shared", printed)]
        assert max(shared) < 50_000


@needs_triton
def test_importing_the_runtime_does_not_import_triton() -> None:
    command = (
        "import sys, runtime, runtime.device.build, runtime.backend.torch.cuda_graphs; print('triton' in sys.modules)"
    )
    assert run("-c", command).strip() == "False"


def test_the_factory_answers_none_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("triton"):
        assert isinstance(triton_attention(), TritonAttention)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton_attention() is None
