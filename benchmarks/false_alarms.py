"""How often the report card raises an alarm where nothing is wrong.

    python benchmarks/false_alarms.py [--model starter] [--cards 24] [--prompts 24] [--sizes 0.001 0.01 0.05]

Two kinds of cards, each of one checkpoint beside the base:

    resampled   the base itself, its responses drawn from other random streams: the exact null, whose every finding
                beyond a threshold is false
    random      LoRAs of random directions, ‖ΔW‖ = size · ‖W‖ in every module: small ones are nulls, and from some size
                on they do damage the model, which the card should say

Prints for each kind the share of cards with any severe finding or warning and its 95 % interval (Wilson), the share of
checks, and the rules that fired. Needs no network but for the model.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import binomtest

from triptych.alignment.adapters import LoraConfig, save_adapter, with_lora
from triptych.auditing.card import report_card
from triptych.auditing.checkpoints import Checkpoint
from triptych.auditing.nulls import lora_layers, null_checkpoints, update_norm
from triptych.auditing.plan import AuditingConfig, PairSource
from triptych.auditing.prompts import audit_prompts, audited_pairs, chosen_answers
from triptych.auditing.reader import Reader
from triptych.auditing.records import BASE, Finding, ReadToken, Response
from triptych.auditing.scoring import surrogate_scores
from triptych.auditing.study import figures
from triptych.auditing.tables import rows_of
from triptych.auditing.variants import Rows, in_order
from triptych.auditing.work import Material, TextSum, Workbench
from triptych.files import atomic_write_json
from triptych.models import LanguageModel, load_language_model
from triptych.parts import PartStore
from triptych.progress import progress
from triptych.seeding import stream_key

SEED = 0
ALARMS = ("severe", "warn")
OTHER_STREAMS = 1_000_000
"""Added to the number of a card: a seed that no audit here has."""


class Kind(NamedTuple):
    """Cards that are counted together."""

    name: str
    checkpoints: list[Checkpoint]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--pairs", default="starter")
    parser.add_argument("--prompts", type=int, default=24, help="of each card")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--cards", type=int, default=24, help="of each kind")
    parser.add_argument("--sizes", type=float, nargs="*", default=[0.001, 0.01, 0.05])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    config = AuditingConfig(
        pairs=given.pairs,
        verbosity_prompts=given.prompts,
        perplexity_prompts=given.prompts,
        max_new_tokens=given.max_new_tokens,
        prompts="starter" if given.pairs == "starter" else "pairs",
    )
    base = load_language_model(given.model, dtype=given.dtype, device="auto")
    with tempfile.TemporaryDirectory() as folder:
        kinds = [Kind("resampled", resampled(base, given.cards))]
        for size in given.sizes:
            place = random_adapter(given.model, Path(folder) / f"size-{size:g}", size)
            kinds.append(Kind(f"random, {size:g}", null_checkpoints([place], given.cards, seed=SEED)))
        lines = []
        for kind, cards in audited(base, config, kinds, Path(folder) / "parts"):
            line = counted(kind, cards)
            share = f"{line['alarms']} of {line['cards']} cards have an alarm [{line['low']:.3f}, {line['high']:.3f}]"
            checks = f"{line['checks_alarmed']} of {line['checks']} checks"
            print(f"{kind:14}  {share}; {checks}: {line['rules'] or '-'}", flush=True)
            lines.append(line)
    if given.out is not None:
        atomic_write_json(given.out, {"model": base.spec, "config": config.model_dump(mode="json"), "kinds": lines})


def resampled(base: LanguageModel, n: int) -> list[Checkpoint]:
    """The base as its own checkpoint, n times, each from random streams of its own."""
    names = [(f"seed {number}", OTHER_STREAMS + number) for number in range(n)]
    return [Checkpoint(name, None, is_adapter=False, fingerprint=base.fingerprint, seed=seed) for name, seed in names]


def random_adapter(model: str, folder: Path, size: float) -> Checkpoint:
    """A LoRA of rank 8 on q_proj and v_proj with ‖ΔW‖ = size · ‖W‖ in each of them."""
    lm = load_language_model(model, dtype="float32", device="cpu")
    wrapped: Any = with_lora(lm.model, LoraConfig(), task="CAUSAL_LM", spec=lm.spec, seed=SEED)
    tuned = LanguageModel(wrapped, lm.tokenizer, lm.spec, lm.eos_ids, lm.fingerprint)
    for name, layer in lora_layers(tuned, str(folder)):
        b = layer.lora_B["default"].weight.data
        generator = torch.Generator().manual_seed(stream_key(SEED, "false alarms", name) >> 1)
        b.normal_(generator=generator)
        b.mul_(size * float(layer.base_layer.weight.float().norm()) / update_norm(layer, "default"))
    save_adapter(wrapped, folder)
    return Checkpoint(f"random {size:g}", folder, is_adapter=True, fingerprint=f"{lm.fingerprint}-{size:g}")


def audited(
    base: LanguageModel, config: AuditingConfig, kinds: Sequence[Kind], folder: Path
) -> Iterator[tuple[str, list[list[Finding]]]]:
    """Kind → its cards, each of one checkpoint and the base."""
    source = PairSource(config.pairs or "", config.limit, config.shuffle, config.on_bad, None)
    pairs = audited_pairs(source, n=config.verbosity_prompts, seed=SEED)
    prompts = audit_prompts(config, pairs, base.tokenizer, SEED)
    chosen = chosen_answers(pairs, config.template, base.tokenizer, config.max_length)
    by_id = {one.prompt.id: one.prompt for one in prompts}
    parts = PartStore(folder, "false-alarms")
    with progress(1, "texts", "auditing", enabled=False) as meter:
        bench = Workbench(Reader(base), Material(config, prompts, chosen, SEED, "auto"), parts, meter)
        bench.finish(Checkpoint(BASE, None, is_adapter=False, fingerprint=base.fingerprint))
        perturbed = bench.perturbed()
        for kind in kinds:
            cards = []
            for checkpoint in kind.checkpoints:
                bench.finish(checkpoint)
                tables = {tuple(json.loads(unit)): table for unit, table in parts.read_all().items()}
                rows = rows_of_models(tables, [BASE, checkpoint.name], [*by_id], config.beta)
                records = figures(config, rows, perturbed, by_id, SEED)
                card = report_card(records, config.thresholds, lambda rule, record: (), gold=None)
                cards.append([one for one in card if one.model == checkpoint.name])
            yield kind.name, cards


def rows_of_models(tables: Any, names: Sequence[str], prompt_ids: Sequence[str], beta: float) -> Rows:
    """What the models wrote, read and scored as their own surrogates."""
    responses = [row for n in names for p in prompt_ids for row in rows_of(tables["responses", n, p], Response)]
    read = [table for step in ("chosen", "own") for name in names for table in in_order(tables, step, name)]
    sums = {
        name: [row for table in in_order(tables, "sums", name) for row in rows_of(table, TextSum)] for name in names
    }
    scores = [one for name in names for one in surrogate_scores(name, sums[name], sums[BASE], beta=beta)]
    return Rows(responses, [row for table in read for row in rows_of(table, ReadToken)], scores)


def counted(kind: str, cards: Sequence[Sequence[Finding]]) -> dict[str, Any]:
    """How many cards and checks have an alarm, and which rules raised it."""
    alarms = [[one for one in card if one.level in ALARMS] for card in cards]
    n = sum(bool(card) for card in alarms)
    interval = binomtest(n, len(cards)).proportion_ci(method="wilson")
    rules = Counter(f"{one.rule} {one.level}" for card in alarms for one in card)
    return {
        "kind": kind,
        "cards": len(cards),
        "alarms": n,
        "low": interval.low,
        "high": interval.high,
        "severe": sum(any(one.level == "severe" for one in card) for card in alarms),
        "checks": sum(map(len, cards)),
        "checks_alarmed": sum(map(len, alarms)),
        "rules": ", ".join(f"{rule} {count}" for rule, count in rules.most_common()),
    }


if __name__ == "__main__":
    main()
