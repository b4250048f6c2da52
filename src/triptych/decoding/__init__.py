"""Decoding: every strategy over one grid of prompts, temperatures and samples, in one continuously refilled batch."""

from triptych.decoding.batch import EngineStats, Job
from triptych.decoding.engine import Engine, Limits, decode
from triptych.decoding.stopping import Stopping
from triptych.decoding.strategies import (
    STRATEGIES,
    Ancestral,
    Beam,
    Contrastive,
    DiverseBeam,
    Eta,
    Greedy,
    MinP,
    Sampler,
    Strategy,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    make_strategy,
    parse_strategies,
)

__all__ = [
    "STRATEGIES",
    "Ancestral",
    "Beam",
    "Contrastive",
    "DiverseBeam",
    "Engine",
    "EngineStats",
    "Eta",
    "Greedy",
    "Job",
    "Limits",
    "MinP",
    "Sampler",
    "Stopping",
    "Strategy",
    "TopK",
    "TopNSigma",
    "TopP",
    "Typical",
    "decode",
    "make_strategy",
    "parse_strategies",
]
