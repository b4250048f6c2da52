"""`triptych interpret`: one sparse dictionary that several models share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.commands.options import GLOBALS, command_line
from triptych.commands.outcome import Outcome, run_outcome

interpret = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="One sparse dictionary that several models share: over images, or over matrices of your own.",
    epilog="""\b
Examples:
  triptych interpret vision --out runs/usae
  triptych interpret activations --activations cnn=acts.safetensors:cnn \\
      --activations vit=acts.safetensors:vit --labels acts.safetensors:label --out runs/acts
""",
)


@interpret.command("vision")
def interpret_vision(
    out: Annotated[Path, typer.Option(help="The run directory.")],
    images: Annotated[
        str, typer.Option(help="starter, a hub id, a .parquet file, or a folder of class folders.")
    ] = "starter",
    test_images: Annotated[
        str | None, typer.Option(help="Held-out images, where they lie elsewhere.", show_default="a split, or a fifth")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=SOURCE",
            help="A hub id or a folder, then :SITE:POOLING (pooled, cls, mean, spatial) if wanted. Twice or more.",
            show_default=False,
        ),
    ] = None,
    backbones: Annotated[
        str | None, typer.Option(help="train: a small ResNet and a ViT, on the images' labels.", show_default=False)
    ] = None,
    latents: Annotated[int, typer.Option(help="Size of the shared code.")] = 2048,
    k: Annotated[int, typer.Option(help="Latents that fire on an image.")] = 32,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    update: Annotated[str, typer.Option(help="all (every decoder learns) or source (the official code).")] = "all",
    seeds: Annotated[int, typer.Option(help="Dictionaries of each kind, for intervals.")] = 3,
    limit: Annotated[int | None, typer.Option(help="Training images, drawn at random.", show_default="all")] = None,
    grid: Annotated[
        int | None, typer.Option(help="Rows and columns of spatial sites.", show_default="the model's own")
    ] = None,
    on_corrupt: Annotated[str, typer.Option(help="stop or skip, where an image cannot be decoded.")] = "stop",
    activations: Annotated[
        str | None, typer.Option(help="A folder of activations that runs share.", show_default="in the run directory")
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of every draw.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Any other key, such as universal.sources=every."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the run directory holds.")] = False,
) -> Outcome:
    """A universal sparse autoencoder over vision models: what they share, what is their own, what sharing costs.

    Trains the dictionary, independent ones, and nulls; measures them on held-out images; shows latents. Run again with
    the same --out, it goes on where it was interrupted.

    \b
    Examples:
      triptych interpret vision --out runs/usae
      triptych interpret vision --images cifar10.parquet --backbones train --out runs/cifar
      triptych interpret vision --images uoft-cs/cifar10 --model r18=microsoft/resnet-18 \\
          --model vit=google/vit-base-patch16-224 --out runs/paper
      triptych interpret vision --images ./photos --model a=./resnet:encoder.stages.2:spatial \\
          --model b=./vit::spatial --grid 7 --out runs/spatial
    """
    from triptych.config import apply_overrides, parse_config
    from triptych.study import StudyConfig, run_study

    given: dict[str, Any] = {
        "images": images,
        "test_images": test_images,
        "models": dict(_named(models or [])),
        "backbones": _backbones(backbones, images, is_needed=not models),
        "limit": limit,
        "grid": grid,
        "on_corrupt": on_corrupt,
        "activations": activations,
        "seeds": seeds,
        "universal": _universal(latents, k, epochs, update),
    }
    written = {"seed": seed, "device": device, "dictionaries": apply_overrides(given, overrides or [])}
    config = parse_config(StudyConfig, written, where="triptych interpret vision")
    show_progress = not GLOBALS.get().quiet
    done = run_study(config, out, command=command_line(), fresh=fresh, show_progress=show_progress)
    return run_outcome(done.run_dir, done.report, did_work=done.did_work)


@interpret.command("activations")
def interpret_activations(
    out: Annotated[Path, typer.Option(help="The run directory.")],
    activations: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FILE[:KEY]",
            help="A matrix, rows x features: .safetensors, .npy or .parquet. Twice or more; row n of each on the same "
            "thing.",
            show_default=False,
        ),
    ],
    test_activations: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE[:KEY]", help="The same on held-out rows.", show_default="a share of the rows"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="FILE[:KEY]", help="An integer or string a row of --activations.", show_default="none"),
    ] = None,
    test_labels: Annotated[
        str | None,
        typer.Option(metavar="FILE[:KEY]", help="The same of --test-activations.", show_default="none"),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of the rows that is held out, drawn by the seed.")] = 0.2,
    latents: Annotated[int, typer.Option(help="Size of the shared code.")] = 2048,
    k: Annotated[int, typer.Option(help="Latents that fire on a row.")] = 32,
    epochs: Annotated[int, typer.Option(help="Passes over the training rows.")] = 30,
    update: Annotated[str, typer.Option(help="all (every decoder learns) or source (the official code).")] = "all",
    seeds: Annotated[int, typer.Option(help="Dictionaries of each kind, for intervals.")] = 3,
    limit: Annotated[int | None, typer.Option(help="Training rows, drawn at random.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(help="The seed of every draw.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Any other key, such as universal.sources=every."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the run directory holds.")] = False,
) -> Outcome:
    """A universal sparse autoencoder over matrices of activations, whichever models they come from.

    As `interpret vision`, without images: trains the dictionary, independent ones, and nulls, and measures them on
    held-out rows. Without a KEY, the tensor called NAME is taken, else the only matrix of the file.

    \b
    Examples:
      triptych interpret activations --activations cnn=acts.safetensors:cnn \\
          --activations vit=acts.safetensors:vit --labels acts.safetensors:label --out runs/acts
      triptych interpret activations --activations a=a.npy --activations b=b.parquet --latents 512 --k 16 \\
          --held-out 0.1 --out runs/two
    """
    from triptych.config import apply_overrides, parse_config
    from triptych.dictionaries.matrices import parse_file
    from triptych.study import StudyConfig, run_study

    options: dict[str, Any] = {
        "matrices": {
            "train": _matrices(activations, "--activations"),
            "test": _matrices(test_activations or [], "--test-activations"),
            "labels": None if labels is None else parse_file(labels),
            "test_labels": None if test_labels is None else parse_file(test_labels),
        },
        "test_share": held_out,
        "limit": limit,
        "seeds": seeds,
        "universal": _universal(latents, k, epochs, update),
    }
    written = {"seed": seed, "device": device, "dictionaries": apply_overrides(options, overrides or [])}
    config = parse_config(StudyConfig, written, where="triptych interpret activations")
    show_progress = not GLOBALS.get().quiet
    done = run_study(config, out, command=command_line(), fresh=fresh, show_progress=show_progress)
    return run_outcome(done.run_dir, done.report, did_work=done.did_work)


def _universal(latents: int, k: int, epochs: int, update: str) -> dict[str, Any]:
    return {
        "coder": {"latents": latents, "sparsifier": {"name": "top_k", "k": k}},
        "epochs": epochs,
        "update": update,
    }


def _matrices(items: list[str], option: str) -> dict[str, Any]:
    """`NAME=FILE[:KEY]` by name."""
    from triptych.dictionaries.matrices import parse_matrix
    from triptych.errors import ConfigError

    matrices: dict[str, Any] = {}
    for item in items:
        name, matrix = parse_matrix(item, option)
        if name in matrices:
            raise ConfigError(f"{option} '{name}' is given twice; choose another name")
        matrices[name] = matrix
    return matrices


def _backbones(wanted: str | None, images: str, *, is_needed: bool) -> dict[str, Any] | None:
    """The settings of backbones that are trained, where that is asked for or no model is given; by kind of images."""
    from triptych.data.images import STARTER
    from triptych.dictionaries.backbones import CIFAR10
    from triptych.errors import ConfigError

    if wanted not in (None, "train"):
        raise ConfigError(f"--backbones '{wanted}' is unknown; the only choice is train")
    if wanted is None and not is_needed:
        return None
    return {} if images == STARTER else dict(CIFAR10)


def _named(items: list[str]) -> dict[str, dict[str, str]]:
    """`NAME=SOURCE[:SITE[:POOLING]]` by name."""
    from triptych.errors import ConfigError

    named: dict[str, dict[str, str]] = {}
    for item in items:
        name, equals, rest = item.partition("=")
        source, *further = rest.split(":")
        if not equals or not name.strip() or not source.strip() or len(further) > 2:
            raise ConfigError(
                f"--model '{item}' is not of the form NAME=SOURCE, NAME=SOURCE:SITE or NAME=SOURCE:SITE:POOLING"
            )
        if name in named:
            raise ConfigError(f"--model '{name}' is given twice; choose another name")
        given = dict(zip(("site", "pooling"), further, strict=False))
        named[name] = {"source": source, **{key: value for key, value in given.items() if value}}
    return named
