"""What happened in a run: recording it, reading it, playing it back, and looking at it.

Names are loaded when they are first used: what reads a trace does without what executes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from runtime.link import FORMAT as FORMAT
    from runtime.link import AnyEvent as AnyEvent
    from runtime.link import Computed as Computed
    from runtime.link import Event as Event
    from runtime.link import Evicted as Evicted
    from runtime.link import GenerateFinished as GenerateFinished
    from runtime.link import GenerateStarted as GenerateStarted
    from runtime.link import Header as Header
    from runtime.link import Joined as Joined
    from runtime.link import Merged as Merged
    from runtime.link import MessageSent as MessageSent
    from runtime.link import MessagesReceived as MessagesReceived
    from runtime.link import Posted as Posted
    from runtime.link import Received as Received
    from runtime.link import RunStarted as RunStarted
    from runtime.link import Sampled as Sampled
    from runtime.link import Scored as Scored
    from runtime.link import Spawned as Spawned
    from runtime.link import ThreadClosed as ThreadClosed
    from runtime.link import ThreadEnded as ThreadEnded
    from runtime.link import ThreadFailed as ThreadFailed
    from runtime.link import ThreadOpened as ThreadOpened
    from runtime.link import TickDone as TickDone
    from runtime.link import ToolCalled as ToolCalled
    from runtime.link import Trace as Trace
    from traces.causal_chain import critical_path as critical_path
    from traces.causal_chain import critical_threads as critical_threads
    from traces.comparison import ThreadDifference as ThreadDifference
    from traces.comparison import diff as diff
    from traces.context import ThreadContext as ThreadContext
    from traces.context import context_of as context_of
    from traces.context import contexts_of as contexts_of
    from traces.counterfactual.asking import WhatIf as WhatIf
    from traces.counterfactual.asking import what_if as what_if
    from traces.counterfactual.comparing import Comparison as Comparison
    from traces.json_lines import thread_lines as thread_lines
    from traces.latent_figure import latents_svg as latents_svg
    from traces.latents import LatentStates as LatentStates
    from traces.latents import TokenStates as TokenStates
    from traces.latents import read_latents as read_latents
    from traces.live_tree import LiveTree as LiveTree
    from traces.playback import Playback as Playback
    from traces.printing import load_decode as load_decode
    from traces.printing import show as show
    from traces.reader import TraceReader as TraceReader
    from traces.reader import read as read
    from traces.recorder import TraceRecorder as TraceRecorder
    from traces.regression import BraidTrace as BraidTrace
    from traces.regression import TraceMismatch as TraceMismatch
    from traces.simulation.costs import DeviceCosts as DeviceCosts
    from traces.simulation.costs import read_costs as read_costs
    from traces.simulation.running import Simulation as Simulation
    from traces.simulation.running import costs_of as costs_of
    from traces.simulation.running import simulate as simulate
    from traces.simulation.scenario import Arrivals as Arrivals
    from traces.simulation.scenario import Percentiles as Percentiles
    from traces.simulation.scenario import Prediction as Prediction
    from traces.simulation.scenario import Scenario as Scenario
    from traces.tables import frame as frame
    from traces.totals import TraceTotals as TraceTotals
    from traces.totals import imbalances as imbalances
    from traces.totals import totals_of as totals_of
    from traces.tree import ThreadRecord as ThreadRecord
    from traces.tree import path_name as path_name
    from traces.tree import thread_tree as thread_tree
    from traces.tree import walk_threads as walk_threads
    from traces.verification import Divergence as Divergence
    from traces.verification import Verification as Verification
    from traces.verification import verify as verify
    from traces.viewer_format import export as export
    from traces.web_page.writing import page as page
    from traces.writer import TraceWriter as TraceWriter

__getattr__, __dir__ = lazy_exports(__name__)
