"""Two ways to run a model for the engine: the fused path where it knows the architecture, the generic one elsewhere."""

from triptych.decoding.backends.base import Backend, Prefix, StepOutput, require_cache
from triptych.decoding.backends.fused import FusedBackend
from triptych.decoding.backends.generic import GenericBackend

__all__ = ["Backend", "FusedBackend", "GenericBackend", "Prefix", "StepOutput", "require_cache"]
