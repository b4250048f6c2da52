"""`triptych bench dpo`: steps of DPO by this project and by TRL, on the same pairs, one after the other."""

from pathlib import Path
from typing import Any

from triptych.alignment.encoding import encode_pairs
from triptych.bench.alignment_work import DpoWork, PairBatches, PairIds, require_enough
from triptych.bench.side_by_side import (
    Run,
    compare,
    largest_loss_difference,
    print_losses,
    print_report,
    require_peer,
    require_writable,
)
from triptych.data.pairs import load_pairs
from triptych.files import atomic_write_json
from triptych.models.loading import load_tokenizer
from triptych.models.sources import resolve_source


def run(out: Path, work: DpoWork, *, show_progress: bool, contender: Run | None = None) -> dict[str, Any]:
    """Measures every contender, writes the figures to `out` and prints the ratios.

    Raises `ConfigError` where TRL is not installed, and what loading model and pairs raises.
    """
    require_peer()
    require_writable(out)
    report = compare("dpo", lay_out(work), show_progress=show_progress, run=contender)
    report["largest_loss_difference"] = largest_loss_difference(report["contenders"])
    atomic_write_json(out, report)
    print_report(
        report,
        title=f"DPO, {work.batch_size} pairs a step of at most {work.max_length} tokens",
        tokens="tokens",
    )
    print_losses(report)
    return report


def lay_out(work: DpoWork) -> PairBatches:
    """The first pairs that leave room for an answer, as token ids, a batch a step.

    Raises `DataError` where they are too few.
    """
    source = resolve_source(work.model)
    pairs = load_pairs(work.pairs, limit=work.limit, on_bad="skip")
    encoded = encode_pairs(pairs, "auto", load_tokenizer(source), work.max_length).pairs
    needed = work.batch_size * (work.steps + 1)
    remedy = "lower --steps or --batch-size, or raise --limit or --max-length"
    require_enough(len(encoded), "pairs", work.pairs, needed, remedy)
    rows = [
        PairIds(id=pair.id, prompt=pair.group.prompt, chosen=chosen, rejected=rejected)
        for pair in encoded[:needed]
        for chosen, rejected in [pair.group.completions]
    ]
    starts = range(0, needed, work.batch_size)
    batches = tuple(tuple(rows[start : start + work.batch_size]) for start in starts)
    return PairBatches(work=work, folder=source.folder, batches=batches)
