"""Axis letters and the tensor shapes that several panels share.

| letter | axis                                   | letter | axis                          |
|--------|----------------------------------------|--------|-------------------------------|
| `b`    | rows of a batch (sequences)            | `h`    | hidden features of a model    |
| `t`    | token positions                        | `l`    | layers                        |
| `v`    | vocabulary entries                     | `a`    | attention heads               |
| `k`    | kept candidates (top-k, beams)         | `d`    | features of one head          |
| `p`    | prompts                                | `g`    | samples of one prompt (group) |
| `n`    | examples that feed a dictionary        | `f`    | latents of a dictionary       |

Ragged lists carry the same letters, in capitals, as a suffix: `token_ids_B_T` is a list of lists.
Shapes are checked while the tests run: `--jaxtyping-packages=triptych,beartype.beartype`.
"""

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Lengths: TypeAlias = Int[Tensor, " b"]
TokenIds: TypeAlias = Int[Tensor, "b t"]
TokenMask: TypeAlias = Bool[Tensor, "b t"]
TokenLogprobs: TypeAlias = Float[Tensor, "b t"]
RowLogits: TypeAlias = Float[Tensor, "b v"]
Logits: TypeAlias = Float[Tensor, "b t v"]
HiddenStates: TypeAlias = Float[Tensor, "b t h"]
