"""`triptych align`: one training run, on-policy pairs, or a merged model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.commands.options import GLOBALS, command_line
from triptych.commands.outcome import Outcome, run_outcome

align = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Reward model, DPO and GRPO; on-policy pairs; merging an adapter.",
)

Model = Annotated[str, typer.Option(help="The base: a hub id, a local folder, or starter.")]
Pairs = Annotated[str, typer.Option(help="A hub id, a .jsonl, .json, .csv or .parquet file, or starter.")]
Out = Annotated[Path, typer.Option(help="The run directory.")]
Limit = Annotated[int | None, typer.Option(help="The first so many.", show_default="all")]
Validation = Annotated[
    float, typer.Option(help="Share that is held out; the starter sets and a --split have their own.")
]
SplitFile = Annotated[
    str | None, typer.Option("--split", help="A split.json of another run: the same sides again.", show_default="drawn")
]
Template = Annotated[
    str, typer.Option(help="auto (the model's chat template, else alpaca), chat, alpaca, paper or plain.")
]
MaxSteps = Annotated[int | None, typer.Option(help="Optimizer steps at most.", show_default="all epochs")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the pairs.", show_default="1")]
BatchSize = Annotated[int | None, typer.Option(help="Pairs of an optimizer step.", show_default="4")]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="Peak learning rate.", show_default="by method")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of a prompt with its answer.", show_default="1024")]
Seed = Annotated[int, typer.Option(help="The seed of every draw.")]
Engine = Annotated[str, typer.Option(help="native, or trl (needs the extra triptych[trl]).")]
Dtype = Annotated[str, typer.Option(help="auto (bf16 where the hardware has it), float32 or bfloat16.")]
Track = Annotated[
    str | None, typer.Option(help="Also log to tensorboard or wandb (triptych[tracking]).", show_default=False)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard what the run directory holds.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Any other key, such as lora.rank=16 or optimiser.schedule=cosine."),
]


@align.command("reward")
def reward(
    model: Model,
    pairs: Pairs,
    out: Out,
    limit: Limit = None,
    validation: Validation = 0.2,
    split: SplitFile = None,
    template: Template = "auto",
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    learning_rate: Rate = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
    engine: Engine = "native",
    dtype: Dtype = "auto",
    track: Track = None,
    overrides: Set = None,
    fresh: Fresh = False,
) -> Outcome:
    """A Bradley-Terry reward model from preference pairs; the decoding panel, GRPO and the audits use it at once.

    \b
    Examples:
      triptych align reward --model starter --pairs starter --out runs/reward
      triptych align reward --model ./backbone --pairs pairs.jsonl --epochs 2 --out runs/reward --set lora.rank=16
    """
    method = _given(epochs=epochs, max_steps=max_steps, batch_size=batch_size, max_length=max_length)
    method |= _rate(learning_rate, 1e-4)
    panel = {"pairs": pairs, "limit": limit, "validation": validation, "template": template, "engine": engine}
    return _run(model, out, panel, "reward", method, overrides, seed, split, dtype, track, fresh)


@align.command("dpo")
def dpo(
    model: Model,
    pairs: Pairs,
    out: Out,
    limit: Limit = None,
    validation: Validation = 0.2,
    split: SplitFile = None,
    template: Template = "auto",
    loss: Annotated[
        str, typer.Option(help="dpo, ipo, hinge, length_normalised_dpo or simpo; its own keys by --set loss.KEY=VALUE.")
    ] = "dpo",
    beta: Annotated[
        float | None, typer.Option(help="Strength of the pull to the reference.", show_default="by loss")
    ] = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    learning_rate: Rate = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
    engine: Engine = "native",
    dtype: Dtype = "auto",
    track: Track = None,
    overrides: Set = None,
    fresh: Fresh = False,
) -> Outcome:
    """Direct preference optimisation and its relatives.

    \b
    Examples:
      triptych align dpo --model starter --pairs starter --out runs/dpo
      triptych align dpo --model ./my-model --pairs pairs.jsonl --beta 0.05 --epochs 2 --out runs/dpo
      triptych align dpo --model starter --pairs starter --loss simpo --set loss.gamma=0.5 --out runs/simpo
    """
    method = _given(epochs=epochs, max_steps=max_steps, batch_size=batch_size, max_length=max_length)
    method |= {"loss": {"name": loss, **_given(beta=beta)}, **_rate(learning_rate, 2e-5)}
    panel = {"pairs": pairs, "limit": limit, "validation": validation, "template": template, "engine": engine}
    return _run(model, out, panel, "dpo", method, overrides, seed, split, dtype, track, fresh)


@align.command("grpo")
def grpo(
    model: Model,
    prompts: Annotated[str, typer.Option(help="A hub id, a .jsonl, .json, .csv or .parquet file, or starter.")],
    out: Out,
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="SPEC",
            help="checks, concise, repetition, brevity, model:DIR, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, "
            "with =WEIGHT; may be given again.  [default: checks]",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[str | None, typer.Option(help="Pairs to measure forgetting on.", show_default="none")] = None,
    validation: Validation = 0.2,
    split: SplitFile = None,
    template: Template = "auto",
    loss: Annotated[str, typer.Option(help="grpo, dapo, dr_grpo or gspo.")] = "grpo",
    beta: Annotated[float | None, typer.Option(help="Weight of the KL penalty.", show_default="by loss")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="50")] = None,
    prompts_per_step: Annotated[int | None, typer.Option(help="Prompts of a step.", show_default="8")] = None,
    group_size: Annotated[int | None, typer.Option(help="Completions of a prompt.", show_default="4")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a completion at most.", show_default="64")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the rollouts.", show_default="1.0")] = None,
    on_collapse: Annotated[
        str | None, typer.Option(help="What to do: warn, stop or rollback.", show_default="stop")
    ] = None,
    learning_rate: Rate = None,
    seed: Seed = 0,
    engine: Engine = "native",
    dtype: Dtype = "auto",
    track: Track = None,
    overrides: Set = None,
    fresh: Fresh = False,
) -> Outcome:
    """Group relative policy optimisation on rewards, with a watch over its collapse.

    \b
    Examples:
      triptych align grpo --model starter --prompts starter --out runs/grpo
      triptych align grpo --model starter --prompts starter --reward model:runs/reward --reward checks --out runs/both
      triptych align grpo --model ./my-model --prompts my.jsonl --reward rewards.py:polite --loss dr_grpo --out runs/own
    """
    method = _given(
        steps=steps,
        prompts_per_step=prompts_per_step,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        rewards=rewards,
        watch=None if on_collapse is None else {"action": on_collapse},
    )
    method |= {"prompts": prompts, "loss": {"name": loss, **_given(beta=beta)}}
    method["optimiser"] = {**_rate(learning_rate, 5e-5)["optimiser"], "schedule": "constant"}
    panel = {"pairs": pairs, "validation": validation, "template": template, "engine": engine}
    return _run(model, out, panel, "grpo", method, overrides, seed, split, dtype, track, fresh)


@align.command("pairs")
def pairs(
    model: Model,
    prompts: Annotated[str, typer.Option(help="A hub id, a .jsonl, .json, .csv or .parquet file, or starter.")],
    out: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    rewards: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="SPEC", help="As for grpo.  [default: checks]", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="Completions of a prompt to choose from.")] = 8,
    limit: Limit = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a completion at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="Of the samples.")] = 1.0,
    template: Template = "auto",
    adapter: Annotated[
        Path | None, typer.Option(help="A PEFT adapter on top of the model.", show_default=False)
    ] = None,
    seed: Seed = 0,
) -> Outcome:
    """On-policy pairs: the best and the worst of n samples of each prompt under a reward.

    \b
    Examples:
      triptych align pairs --model starter --prompts starter --limit 32 --samples 4 --out pairs.jsonl
      triptych align pairs --model starter --prompts starter --reward model:runs/reward --out pairs.jsonl
    """
    from triptych.alignment.on_policy import run_pairs

    made = run_pairs(
        model,
        prompts,
        out,
        rewards=tuple(rewards or ("checks",)),
        samples=samples,
        limit=limit,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        template=template,
        adapter=adapter,
        seed=seed,
        show_progress=not GLOBALS.get().quiet,
    )
    figures = {"pairs": len(made.rows), "without_a_pair": made.n_alike, "file": str(out)}
    return Outcome((f"{out}: {len(made.rows)} pairs ({made.n_alike} prompts gave none)",), figures)


@align.command("merge")
def merge(
    model: Model,
    adapter: Annotated[Path, typer.Option(help="The adapter's folder, or a run directory that holds one.")],
    out: Annotated[Path, typer.Option(help="The folder to write; must not hold anything yet.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
) -> Outcome:
    """Base and adapter as one model that transformers reads.

    \b
    Example:
      triptych align merge --model starter --adapter runs/dpo --out models/aligned
    """
    from triptych.alignment.merge import merge as run_merge

    folder = run_merge(model, adapter, out, dtype=dtype)
    return Outcome((str(folder),), {"model": str(folder)})


def _given(**options: Any) -> dict[str, Any]:
    """The options that the user gave: the others keep the recipe's defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _rate(learning_rate: float | None, default: float) -> dict[str, Any]:
    return {"optimiser": {"learning_rate": learning_rate or default}}


def _run(
    model: str,
    out: Path,
    panel: dict[str, Any],
    name: str,
    method: dict[str, Any],
    overrides: list[str] | None,
    seed: int,
    split: str | None,
    dtype: str,
    track: str | None,
    fresh: bool,
) -> Outcome:
    from triptych.config import apply_overrides, parse_config
    from triptych.study import StudyConfig, run_study

    changed = apply_overrides(method, overrides or [])
    written = {"model": model, "seed": seed, "split": split, "dtype": dtype, "alignment": {**panel, name: changed}}
    config = parse_config(StudyConfig, written, where=f"triptych align {name}")
    done = run_study(
        config, out, command=command_line(), fresh=fresh, show_progress=not GLOBALS.get().quiet, track=track
    )
    outcome = run_outcome(done.run_dir, done.report, did_work=done.did_work)
    return Outcome((str(out / "alignment" / name), *outcome.lines), outcome.figures)
