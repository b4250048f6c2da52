"""A study that is killed at random moments must end with the figures of an undisturbed one.

    python benchmarks/kills.py [--recipe smoke] [--kills 10] [--seed 0] [--keep DIR]

Runs the recipe once undisturbed and once with SIGKILL at random moments, each time given again, until it ends; then
compares every figure and table of the two reports, byte for byte. What tells of time and memory is left out: those
differ between any two runs. Exit code 1 where anything else differs.
"""

import argparse
import csv
import hashlib
import random  # noqa: TID251 - moments to kill at, nothing that is measured
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = (sys.executable, "-m", "triptych", "study", "--quiet")
OF_THIS_RUN = ("cost", "stages")
"""Parts of the names of files about time and memory."""
SECONDS = "seconds"
"""Columns of this name are left out of tables."""
LONGEST = 3600


def study(recipe: str, out: Path, *, kill_after: float | None = None) -> bool:
    """Runs the study; whether it came to its end."""
    process = subprocess.Popen([*COMMAND, "--recipe", recipe, "--out", str(out)], stdout=subprocess.DEVNULL)
    try:
        code = process.wait(timeout=kill_after or LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    if code:
        raise SystemExit(f"the study ended with exit code {code} (see above)")
    return True


def fingerprints(out: Path) -> dict[str, str]:
    """Hash of every figure and table of a run by its name."""
    files = sorted([*out.glob("figures/*.svg"), *out.glob("tables/*.csv")])
    kept = [path for path in files if not any(word in path.name for word in OF_THIS_RUN)]
    return {path.name: hashlib.sha256(content(path)).hexdigest() for path in kept}


def content(path: Path) -> bytes:
    """What a file says of the results."""
    if path.suffix != ".csv":
        return path.read_bytes()
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    kept = [column for column, name in enumerate(head) if name != SECONDS]
    return repr([[row[column] for column in kept] for row in (head, *rows)]).encode()


def last_stage(out: Path) -> str:
    """Where a killed run was, for the reader."""
    log = out / "log.jsonl"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    stages = [line for line in lines if '"event": "stage"' in line]
    return stages[-1].partition('"name": "')[2].partition('"')[0] if stages else "before its first stage"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="where to leave both runs; by default they are removed")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="triptych-kills-"))
    moments = random.Random(given.seed)  # noqa: S311
    started = time.monotonic()
    study(given.recipe, folder / "undisturbed")
    seconds = time.monotonic() - started
    print(f"undisturbed: {seconds:.0f} s")
    kills = 0
    while kills < given.kills:
        # Long enough to get past the imports, short enough that ten kills fall within one run.
        after = moments.uniform(4.0, 4.0 + 2.0 * seconds / given.kills)
        if study(given.recipe, folder / "killed", kill_after=after):
            print(f"the run came to its end after {kills} kills; a new one is killed further")
            compare(folder)
            shutil.rmtree(folder / "killed")
            continue
        kills += 1
        print(f"kill {kills}: after {after:.1f} s, in {last_stage(folder / 'killed')}", flush=True)
    study(given.recipe, folder / "killed")
    compare(folder)
    if given.keep is None:
        shutil.rmtree(folder)


def compare(folder: Path) -> None:
    """Says how many figures and tables are the same; ends the script where any is not."""
    one, other = (fingerprints(folder / name) for name in ("undisturbed", "killed"))
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(f"{len(one)} figures and tables, {len(different)} different{': ' if different else ''}{', '.join(different)}")
    if different or not one:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
