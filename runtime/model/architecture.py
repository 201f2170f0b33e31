"""The models that the engine runs, as one type."""

from __future__ import annotations

from runtime.model.config import RavenConfig
from runtime.model.raven import Raven

Model = Raven
ModelConfig = RavenConfig
