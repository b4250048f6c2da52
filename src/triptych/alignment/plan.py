"""What the alignment panel is to do: its configuration."""

from typing import Literal

from pydantic import Field

from triptych.alignment.dpo import DpoConfig
from triptych.alignment.encoding import Template
from triptych.alignment.grpo import GrpoConfig
from triptych.alignment.reward_model import RewardConfig
from triptych.config import Config
from triptych.data.pairs import PairSource


class AlignmentConfig(Config):
    """The panel: preference pairs, and what is trained on them."""

    pairs: str | None = "starter"
    """`starter`, a file or a hub data set; None for GRPO without pairs to measure forgetting on."""
    limit: int | None = Field(default=None, ge=1)
    shuffle: bool = False
    """Draw the pairs by the seed instead of taking them in their order."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do with blank or identical answers."""
    validation: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of the pairs, and of GRPO's prompts, that is held out. The starter sets and a split file have their own."""
    template: Template = "auto"
    """`auto` is the model's own chat template where it has one, else Alpaca's."""
    engine: Literal["native", "trl"] = "native"
    """`trl` runs the same recipe by TRL's trainers."""
    reward: RewardConfig | None = None
    dpo: DpoConfig | None = None
    grpo: GrpoConfig | None = None

    @property
    def pair_source(self) -> PairSource | None:
        return None if self.pairs is None else PairSource(self.pairs, self.limit, self.shuffle, self.on_bad)
