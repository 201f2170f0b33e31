"""Models and their files: what training, and whoever builds or converts a checkpoint, needs of them.

Names are loaded when they are first used, because most of them need PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from runtime.model.architecture import parse_config as parse_config
    from runtime.model.braid_file import BraidFile as BraidFile
    from runtime.model.braid_file import parse_braid as parse_braid
    from runtime.model.chat_files import ChatTemplate as ChatTemplate
    from runtime.model.chat_files import ChatTemplates as ChatTemplates
    from runtime.model.chat_files import read_chat_templates as read_chat_templates
    from runtime.model.checkpoint import Checkpoint as Checkpoint
    from runtime.model.checkpoint import Description as Description
    from runtime.model.checkpoint import describe as describe
    from runtime.model.checkpoint import fingerprint as fingerprint
    from runtime.model.checkpoint import load_checkpoint as load_checkpoint
    from runtime.model.checkpoint import load_served as load_served
    from runtime.model.checkpoint import resolve as resolve
    from runtime.model.checkpoint import save_checkpoint as save_checkpoint
    from runtime.model.configuration import ModelConfig as ModelConfig
    from runtime.model.directories import BRAID as BRAID
    from runtime.model.directories import TOKENIZER as TOKENIZER
    from runtime.model.directories import shipped_checkpoints as shipped_checkpoints
    from runtime.model.directories import shipped_directory as shipped_directory
    from runtime.model.directories import tokenizer_file as tokenizer_file
    from runtime.model.families.raven import RavenConfig as RavenConfig
    from runtime.model.files import replace_file as replace_file
    from runtime.model.files import replacing as replacing
    from runtime.model.parameters import initialise as initialise
    from runtime.model.parameters import published_weights as published_weights
    from runtime.model.specification import Specification as Specification
    from runtime.model.tokenizer import Tokenizer as Tokenizer
    from runtime.model.transformer import Attend as Attend
    from runtime.model.transformer import Rotation as Rotation
    from runtime.model.transformer import Transformer as Transformer

__getattr__, __dir__ = lazy_exports(__name__)
