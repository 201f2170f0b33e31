"""Starting a run from a checkpoint's weights, with a vocabulary that may have grown."""

from __future__ import annotations

from pathlib import Path

import torch

from runtime import CheckpointError
from runtime.model import Tokenizer, Transformer, load_checkpoint

_TABLES = ("embedding.weight", "head.weight")


@torch.no_grad()
def initialise_from(model: Transformer, checkpoint: str | Path, tokenizer: Tokenizer) -> int:
    """Copies a checkpoint's weights into `model`, whose vocabulary is `tokenizer`'s; returns how many tokens are new.

    A row of embedding and head goes where `tokenizer` has the same token. Tokens that the checkpoint does not know
    keep the rows that `model` has, so initialise it first; tokens that only the checkpoint knows are left out. Raises
    `CheckpointError` if the checkpoint has no tokenizer, or if anything but the number of rows differs.
    """
    loaded = load_checkpoint(checkpoint)
    if loaded.tokenizer is None:
        raise CheckpointError(f"{loaded.path}: has no tokenizer.json, so that its tokens cannot be matched.")
    theirs, ours = dict(loaded.model.named_parameters()), dict(model.named_parameters())
    if theirs.keys() != ours.keys():
        names = ", ".join(sorted(theirs.keys() ^ ours.keys()))
        raise CheckpointError(f"{loaded.path}: a model of another structure; only one of the two has {names}.")
    for name, parameter in ours.items():
        start = 1 if name in _TABLES else 0
        if theirs[name].shape[start:] != parameter.shape[start:]:
            raise CheckpointError(
                f"{loaded.path}: {name} has shape {list(theirs[name].shape)}, but {list(parameter.shape)} in the model "
                "to initialise; only the number of tokens may differ."
            )
    words = {token: loaded.tokenizer.id_to_token(token) for token in range(loaded.tokenizer.vocab_size)}
    places = {token: tokenizer.token_to_id(word) for token, word in words.items() if word is not None}
    known = {token: place for token, place in places.items() if place is not None}
    sources, targets = torch.tensor(list(known.keys())), torch.tensor(list(known.values()))
    for name, parameter in ours.items():
        if name in _TABLES:
            parameter[targets.to(parameter.device)] = theirs[name][sources].to(parameter.device)
        else:
            parameter.copy_(theirs[name])
    return tokenizer.vocab_size - len(known)
