"""Braid's runtime: reasoning threads whose tokens come from a batched depth-recurrent model.

`from runtime import Engine` is where to begin; names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from policies import Limits as Limits
    from runtime.backend.virtual import CallWork as CallWork
    from runtime.backend.virtual import Said as Said
    from runtime.backend.work_ahead import TickWork as TickWork
    from runtime.chat import Message as Message
    from runtime.cluster.cluster import Cluster as Cluster
    from runtime.cluster.device import ReplicaStatus as ReplicaStatus
    from runtime.device.remote.settings import RemoteSettings as RemoteSettings
    from runtime.device.settings import EngineSettings as EngineSettings
    from runtime.device.virtual import HostWork as HostWork
    from runtime.device.virtual import ModelSizes as ModelSizes
    from runtime.device.virtual import VirtualCosts as VirtualCosts
    from runtime.device.virtual import VirtualDevice as VirtualDevice
    from runtime.engine import Engine as Engine
    from runtime.errors import BraidError as BraidError
    from runtime.errors import CapacityError as CapacityError
    from runtime.errors import CheckpointError as CheckpointError
    from runtime.errors import ConstraintError as ConstraintError
    from runtime.errors import EngineClosed as EngineClosed
    from runtime.errors import EngineFailed as EngineFailed
    from runtime.errors import LimitExceeded as LimitExceeded
    from runtime.errors import NumericalError as NumericalError
    from runtime.errors import PolicyError as PolicyError
    from runtime.errors import PromptError as PromptError
    from runtime.errors import ProtocolError as ProtocolError
    from runtime.errors import QueueFull as QueueFull
    from runtime.errors import RemoteError as RemoteError
    from runtime.errors import ThreadStateError as ThreadStateError
    from runtime.errors import ToolError as ToolError
    from runtime.errors import TraceError as TraceError
    from runtime.link.commands import Statistics as Statistics
    from runtime.link.latents import Latents as Latents
    from runtime.link.sampling import Sampling as Sampling
    from runtime.loading.local import open_device as open_device
    from runtime.loading.played import open_playback as open_playback
    from runtime.protocol import APR as APR
    from runtime.protocol import NPR as NPR
    from runtime.protocol import BoundForkProtocol as BoundForkProtocol
    from runtime.protocol import BoundProtocol as BoundProtocol
    from runtime.protocol import ForkProtocol as ForkProtocol
    from runtime.protocol import Multiverse as Multiverse
    from runtime.protocol import ParallelR1 as ParallelR1
    from runtime.protocol import TagProtocol as TagProtocol
    from runtime.protocol import ThreadWeaver as ThreadWeaver
    from runtime.protocol import ToolProtocol as ToolProtocol
    from runtime.protocol import ToolTags as ToolTags
    from runtime.protocol import apr_protocol as apr_protocol
    from runtime.threads.board import Board as Board
    from runtime.threads.board import Posting as Posting
    from runtime.threads.board import Tree as Tree
    from runtime.threads.child import Child as Child
    from runtime.threads.child import ChildStatus as ChildStatus
    from runtime.threads.mailbox import ThreadMessage as ThreadMessage
    from runtime.threads.opened import Opened as Opened
    from runtime.threads.results import Answer as Answer
    from runtime.threads.results import Chunk as Chunk
    from runtime.threads.results import Generation as Generation
    from runtime.threads.results import Score as Score
    from runtime.threads.results import Usage as Usage
    from runtime.threads.stream import Stream as Stream
    from runtime.threads.thread import ReasoningThread as ReasoningThread
    from runtime.threads.tool import Tool as Tool
    from runtime.threads.tools import Tools as Tools

__getattr__, __dir__ = lazy_exports(__name__)
