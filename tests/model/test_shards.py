"""Weights in several files, and the index that places tensors in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.model.checkpoint import load_checkpoint
from tests.model.damaged import QUERY, refused, shard, write_index


def test_a_missing_shard_is_named(saved: Path) -> None:
    weight_map = shard(saved)
    lost = weight_map[QUERY]
    (saved / lost).unlink()
    refused(saved, saved / lost, "no such file", "model.safetensors.index.json says that it holds")


def test_a_truncated_shard_is_named(saved: Path) -> None:
    lost = shard(saved)[QUERY]
    os.truncate(saved / lost, 50)
    refused(saved, saved / lost, "not a readable safetensors file")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b", "..\\b", "C:\\b", "", "."])
def test_an_index_may_not_leave_its_directory(saved: Path, name: str) -> None:
    weight_map = shard(saved)
    write_index(saved, {**weight_map, QUERY: name})
    refused(saved, saved / "model.safetensors.index.json", repr(name), "inside this directory")


def test_an_index_that_places_a_tensor_elsewhere_is_named(saved: Path) -> None:
    weight_map = shard(saved)
    other = next(file for file in weight_map.values() if file != weight_map[QUERY])
    write_index(saved, {**weight_map, QUERY: other})
    refused(saved, QUERY, "model.safetensors.index.json does not place there")


def test_a_tensor_that_no_shard_holds_is_named(saved: Path) -> None:
    weight_map = shard(saved)
    write_index(saved, {**weight_map, "transformer.ghost": weight_map[QUERY]})
    refused(saved, saved / weight_map[QUERY], "lacks transformer.ghost")


def test_a_tensor_that_the_index_leaves_out_is_named(saved: Path) -> None:
    weight_map = shard(saved)
    holder = weight_map.pop(QUERY)
    write_index(saved, weight_map)
    refused(saved, saved / holder, f"holds {QUERY}")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"metadata": {}}', "not a weight index"),
        ('{"weight_map": {"a": 1}}', "not a weight index"),
    ],
)
def test_a_broken_index_is_named(saved: Path, content: str, part: str) -> None:
    shard(saved)
    (saved / "model.safetensors.index.json").write_text(content)
    refused(saved, saved / "model.safetensors.index.json", part)


def test_shards_may_be_links_into_a_download_cache(saved: Path) -> None:
    weight_map = shard(saved)
    (saved.parent / "blobs").mkdir()
    for file in set(weight_map.values()):
        (saved / file).rename(saved.parent / "blobs" / file)
        (saved / file).symlink_to(Path("..", "blobs", file))
    assert load_checkpoint(saved).path == saved
