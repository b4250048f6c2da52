"""Direct preference optimisation and its relatives: pairs in, an adapter out.

The reference's log-probabilities are computed once, by the same code in the very passes of the first epoch, and kept on
disk under a hash of base and passes; so the first loss is that of a margin of exactly 0. In other company, matrix
products of another shape would round otherwise: in bf16 that is not little.
"""

import hashlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych import compiled, lanes, simd
from triptych.alignment import head
from triptych.alignment.backends import fused, generic, kernels
from triptych.alignment.encoding import EncodedPair
from triptych.alignment.head import TokenComparison
from triptych.alignment.loop import Stateless, TrainingConfig
from triptych.alignment.losses import Dpo, LossOutput, PairLogps, PreferenceLoss, preference_loss
from triptych.alignment.optimisation import OptimiserConfig, accumulate
from triptych.alignment.packing import Packed, micro_batches, pass_tokens
from triptych.alignment.policy import Policy
from triptych.decoding import kernels as shared_kernels
from triptych.environment import device_description
from triptych.files import atomic_path
from triptych.lanes import Lanes
from triptych.models import llama
from triptych.models.cache import cache_root
from triptych.progress import progress
from triptych.seeding import generator, stream_key
from triptych.workers import Workers

ARITHMETIC = (fused, generic, kernels, shared_kernels, head, llama, simd, compiled, lanes)
"""Modules whose code decides about the last bit of a log-probability."""


class DpoConfig(TrainingConfig):
    """Training on preference pairs."""

    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=2e-5)
    loss: PreferenceLoss = Dpo()
    batch_size: int = Field(default=4, ge=1)
    """Pairs of an optimizer step, over all workers."""
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)


class PairOrder:
    """Which pairs each step takes: a fresh shuffle every epoch, by the seed alone; what an epoch leaves is a batch."""

    def __init__(self, n: int, batch_size: int, epochs: int, max_steps: int | None, seed: int) -> None:
        self._n, self._batch_size, self._seed = n, batch_size, seed
        self.per_epoch = math.ceil(n / batch_size)
        self.steps = min(self.per_epoch * epochs, max_steps or self.per_epoch * epochs)

    def batch(self, step: int) -> list[int]:
        """Row numbers of step `step`."""
        epoch, within = divmod(step, self.per_epoch)
        order = generator(self._seed, "pair order", epoch).permutation(self._n)
        return [int(row) for row in order[within * self._batch_size : (within + 1) * self._batch_size]]


class HeldOut(NamedTuple):
    """What an evaluation saw, pair by pair and token by token of the chosen answers; nats."""

    ids: list[str]
    margins: list[float]
    token_pair: list[int]
    """Which of `ids` each token belongs to."""
    logprobs: list[float]
    references: list[float]
    kl: list[float]


class DpoTask(Stateless):
    """DPO as the training loop sees it."""

    name = "dpo"

    def __init__(
        self,
        policy: Policy,
        config: DpoConfig,
        train: Sequence[EncodedPair],
        validation: Sequence[EncodedPair],
        references: Mapping[str, tuple[float, float]],
        workers: Workers,
        *,
        seed: int,
    ) -> None:
        self._policy, self._config, self._workers, self._seed = policy, config, workers, seed
        self._train, self._validation, self._references = train, validation, references
        self._order = PairOrder(len(train), config.batch_size, config.epochs, config.max_steps, seed)
        self.total_steps = self._order.steps
        self.last_evaluation: HeldOut | None = None
        """Of this worker's own share of the held-out pairs."""

    def accumulate(self, step: int) -> dict[str, float | None]:
        batch = self._order.batch(step)
        mine = [self._train[row] for row in self._workers.share(batch)]
        sums = torch.zeros(8, dtype=torch.float64)

        def read(part: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
            packed = self._policy.pack([pair.group for pair in part])
            dropout = dropout_generator(self._config, self._seed, step, part[0].id)
            logprobs = self._policy.logprobs(packed, generator=dropout).logprobs
            pairs = pair_logps(completion_sums(logprobs, packed), self._references_of(part), packed)
            out = preference_loss(self._config.loss, pairs)
            own = _pair_sums(out, pairs)
            own[7] = packed.n_tokens
            return out.losses.sum() / len(batch), own

        parts = micro_batches_of(mine, self._config, self._policy.lm.device, self._policy.trunk.lanes)
        for own in accumulate(read, parts, self._policy.parameters.values(), self._policy.trunk.lanes):
            sums += own
        self._workers.sum([sums])
        return _pair_means(sums, len(batch)) | {"tokens": float(sums[7])}

    def evaluate(self) -> dict[str, float | None]:
        if not self._validation:
            return {}
        mine = [self._validation[row] for row in self._workers.share(range(len(self._validation)))]
        sums = torch.zeros(8, dtype=torch.float64)
        seen = HeldOut([], [], [], [], [], [])

        def read(part: Sequence[EncodedPair]) -> tuple[Packed, TokenComparison]:
            packed = self._policy.pack([pair.group for pair in part])
            return packed, self._policy.compare(packed)

        parts = micro_batches_of(mine, self._config, self._policy.lm.device, self._policy.trunk.lanes)
        for part, (packed, compared) in zip(parts, self._policy.trunk.lanes.map(read, parts), strict=True):
            sums_of = [completion_sums(one, packed) for one in (compared.logprobs, compared.reference)]
            pairs = pair_logps(sums_of[0], sums_of[1], packed)
            out = preference_loss(self._config.loss, pairs)
            sums += _pair_sums(out, pairs)
            _note(seen, part, out, packed, compared)
        self.last_evaluation = seen
        totals = [-sum(seen.logprobs), -sum(seen.references), sum(seen.kl), float(len(seen.kl))]
        self._workers.sum([sums])
        nll, nll_reference, kl, tokens = self._workers.sum_of(totals)
        return _pair_means(sums, len(self._validation)) | {
            "perplexity": math.exp(nll / tokens),
            "perplexity_reference": math.exp(nll_reference / tokens),
            "kl": kl / tokens,
        }

    def _references_of(self, part: Sequence[EncodedPair]) -> Tensor:
        return torch.tensor([self._references[pair.id] for pair in part])


def pair_logps(sums: Tensor, references: Tensor, packed: Packed) -> PairLogps:
    """What a loss reads of the pairs of a pass; `sums` and `references` are [pairs, 2]."""
    reference, lengths = references.to(sums), packed.lengths.view(-1, 2).to(sums.device)
    return PairLogps(sums[:, 0], sums[:, 1], reference[:, 0], reference[:, 1], lengths[:, 0], lengths[:, 1])


def completion_sums(logprobs: Tensor, packed: Packed) -> Tensor:
    """Log-probabilities of whole completions, summed over their tokens in fp32: [groups, 2]."""
    sums = logprobs.new_zeros(len(packed.lengths)).index_add(0, packed.sequence.to(logprobs.device), logprobs)
    return sums.view(-1, 2)


def micro_batches_of(
    pairs: Sequence[EncodedPair], config: TrainingConfig, device: torch.device, lanes: Lanes
) -> list[list[EncodedPair]]:
    """The pairs in their order, as many in a pass as fit, and every lane busy."""
    sizes = [pair.group.n_tokens for pair in pairs]
    most = pass_tokens(sizes, config.pass_tokens(device), lanes.count)
    ranges = micro_batches(sizes, max_tokens=most, max_groups=config.micro_batch_size)
    return [[pairs[i] for i in one] for one in ranges] if pairs else []


def dropout_generator(config: TrainingConfig, seed: int, step: int, name: str) -> torch.Generator | None:
    """Of the masks of one pass; None where nothing is dropped."""
    if config.lora is None or config.lora.dropout == 0.0:
        return None
    key = stream_key(seed, "dropout", step, name)
    return torch.Generator().manual_seed(key >> 1)


def reference_logprobs(
    policy: Policy,
    pairs: Sequence[EncodedPair],
    config: DpoConfig,
    *,
    workers: Workers,
    show_progress: bool,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """(chosen, rejected) under the base of each training pair that a step takes, from the cache if they are there."""
    passes = _passes(pairs, config, policy, workers, seed)
    path = cache_root() / "references" / f"{_reference_key(policy, passes)}.safetensors"
    if workers.is_main and not path.exists():
        table = _compute_references(policy, passes, show_progress)
        with atomic_path(path) as temporary:
            save_file({"logprobs": table}, temporary)
    workers.wait()
    table = load_file(path)["logprobs"]
    in_order = [pair for part in passes for pair in part]
    return {pair.id: (float(row[0]), float(row[1])) for pair, row in zip(in_order, table, strict=True)}


def _passes(
    pairs: Sequence[EncodedPair], config: DpoConfig, policy: Policy, workers: Workers, seed: int
) -> list[list[EncodedPair]]:
    """The passes of the first epoch, of all workers."""
    order = PairOrder(len(pairs), config.batch_size, config.epochs, config.max_steps, seed)
    batches = [order.batch(step) for step in range(min(order.steps, order.per_epoch))]
    shares = [batch[rank :: workers.count] for batch in batches for rank in range(workers.count)]
    device, lanes = policy.lm.device, policy.trunk.lanes
    return [part for share in shares for part in micro_batches_of([pairs[row] for row in share], config, device, lanes)]


def _compute_references(policy: Policy, passes: Sequence[Sequence[EncodedPair]], show_progress: bool) -> Tensor:
    """[pairs, 2], fp32."""

    def read(part: Sequence[EncodedPair]) -> Tensor:
        packed = policy.pack([pair.group for pair in part])
        return completion_sums(policy.reference_logprobs(packed), packed).float().cpu()

    rows: list[Tensor] = []
    with progress(sum(map(len, passes)), "pairs", "reference", enabled=show_progress) as meter:
        for own in policy.trunk.lanes.map(read, passes):
            rows.append(own)
            meter.advance(len(own))
    return torch.cat(rows)


def _reference_key(policy: Policy, passes: Sequence[Sequence[EncodedPair]]) -> str:
    """Of all that the numbers depend on, to the last bit: base, arithmetic, machine, path and tokens, pass by pass.

    What another machine computed, another number of threads or another version of our kernels, would not be the base's
    own to the last bit: the first margin would not be 0, and the same run would end elsewhere.
    """
    digest = hashlib.sha256()
    computed = (policy.lm.dtype, policy.trunk.path, policy.trunk.shares_prefix)
    machine = (policy.lm.device, device_description(), torch.get_num_threads(), torch.__version__)
    digest.update(repr((policy.lm.fingerprint, *map(str, computed), *map(str, machine))).encode())
    for module in ARITHMETIC:
        digest.update(inspect.getsource(module).encode())
    for part in passes:
        digest.update(repr([pair.group for pair in part]).encode())
    return digest.hexdigest()[:24]


def _pair_sums(out: LossOutput, pairs: PairLogps) -> Tensor:
    """Sums over pairs, in the order of `_pair_means`; the last place is free."""
    chosen, rejected = out.rewards_chosen, out.rewards_rejected
    columns = (
        out.losses,
        (chosen > rejected).float(),
        chosen - rejected,
        chosen,
        rejected,
        pairs.chosen,
        pairs.rejected,
    )
    summed = torch.stack([column.detach().double().sum() for column in columns])
    return torch.cat((summed.cpu(), torch.zeros(1, dtype=torch.float64)))


def _note(
    seen: HeldOut, part: Sequence[EncodedPair], out: LossOutput, packed: Packed, compared: TokenComparison
) -> None:
    """Adds some pairs to what was seen."""
    first = len(seen.ids)
    seen.ids.extend(pair.id for pair in part)
    seen.margins.extend((out.rewards_chosen - out.rewards_rejected).tolist())
    chosen = packed.sequence % 2 == 0
    seen.token_pair.extend(first + i for i in (packed.sequence[chosen] // 2).tolist())
    for column, values in zip((seen.logprobs, seen.references, seen.kl), compared, strict=True):
        column.extend(values.cpu()[chosen].tolist())


def _pair_means(sums: Tensor, n: int) -> dict[str, float | None]:
    names = ("loss", "accuracy", "margin", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected")
    return {name: float(value) / n for name, value in zip(names, sums.tolist(), strict=False)}
