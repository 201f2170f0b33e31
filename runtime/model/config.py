"""The configuration of depth-recurrent models, for programs that make one of their own."""

from runtime.model.families.raven import RavenConfig

__all__ = ["RavenConfig"]
