"""`triptych bench grpo`: steps of GRPO by this project and by TRL, on the same prompts, one after the other.

Every completion is as long as it may be: TRL's are told so (`min_new_tokens`), and for ours no token ends a text. So a
step is the same work for all, whatever they draw.
"""

from pathlib import Path
from typing import Any

from rich.console import Console

from triptych.alignment.encoding import resolve_template
from triptych.bench.alignment_work import GrpoWork, PromptBatches, require_enough
from triptych.bench.side_by_side import Run, compare, print_report, require_peer, require_writable
from triptych.data.prompts import load_prompts
from triptych.data.templates import render_prompt
from triptych.files import atomic_write_json
from triptych.models.loading import load_tokenizer
from triptych.models.sources import resolve_source


def run(out: Path, work: GrpoWork, *, show_progress: bool, contender: Run | None = None) -> dict[str, Any]:
    """Measures every contender, writes the figures to `out` and prints the ratios.

    Raises `ConfigError` where TRL is not installed, and what loading model and prompts raises.
    """
    require_peer()
    require_writable(out)
    report = compare("grpo", lay_out(work), show_progress=show_progress, run=contender)
    completions = work.prompts_per_step * work.group_size
    for figures in report["contenders"].values():
        figures["mean_length"] = figures["tokens_per_step"] / completions
    atomic_write_json(out, report)
    size = f"{work.prompts_per_step} prompts x {work.group_size} completions x {work.max_new_tokens} tokens"
    print_report(report, title=f"GRPO, {size} a step", tokens="new tokens")
    lengths = ", ".join(f"{name} {figures['mean_length']:.1f}" for name, figures in report["contenders"].items())
    console = Console(width=110)
    console.print(
        f"{report['ratios']['tokens']:.1f}x the new tokens/s; tokens of a completion: {lengths}", highlight=False
    )
    return report


def lay_out(work: GrpoWork) -> PromptBatches:
    """The first prompts, rendered for the model, as many as a step takes for each.

    Raises `DataError` where they are too few.
    """
    source = resolve_source(work.model)
    tokenizer = load_tokenizer(source)
    prompts = load_prompts(work.prompts, limit=work.limit)
    needed = work.prompts_per_step * (work.steps + 1)
    remedy = "lower --steps or --prompts-per-step, or raise --limit"
    require_enough(len(prompts), "prompts", work.prompts, needed, remedy)
    template = resolve_template("auto", tokenizer)
    rendered = [one.model_copy(update={"prompt": render_prompt(one, template, tokenizer)}) for one in prompts[:needed]]
    starts = range(0, needed, work.prompts_per_step)
    batches = tuple(tuple(rendered[start : start + work.prompts_per_step]) for start in starts)
    return PromptBatches(work=work, folder=source.folder, batches=batches)
