"""How deciding is learned: supervised training on demonstrations, reinforcement learning over thread trees.

docs/training.md shows the way from a task to a checkpoint.
"""

from policies.training.calibration import CRITERIA, Calibration, CalibrationSet, best, save_default_policy
from policies.training.examples import Example
from policies.training.export import export_checkpoint
from policies.training.grpo import GrpoConfig, train_grpo
from policies.training.initial import initialise_from
from policies.training.plot import plot_metrics
from policies.training.processes import MOST_PROCESSES, run_processes
from policies.training.questions import Question, ask_all
from policies.training.resume import restore
from policies.training.schedule import SupervisedConfig
from policies.training.supervised import train
from policies.training.teacher_forcing import exactness
from policies.training.thread_tokens import ExitGroup, ThreadTokens, threads_in

__all__ = [
    "CRITERIA",
    "MOST_PROCESSES",
    "Calibration",
    "CalibrationSet",
    "Example",
    "ExitGroup",
    "GrpoConfig",
    "Question",
    "SupervisedConfig",
    "ThreadTokens",
    "ask_all",
    "best",
    "exactness",
    "export_checkpoint",
    "initialise_from",
    "plot_metrics",
    "restore",
    "run_processes",
    "save_default_policy",
    "threads_in",
    "train",
    "train_grpo",
]
