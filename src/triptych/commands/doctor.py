"""`triptych doctor`."""

from triptych.commands.outcome import Outcome


def doctor() -> Outcome:
    """What this machine offers, and what each recipe will cost on it (an estimate).

    \b
    Examples:
      triptych doctor
      triptych doctor --json
    """
    from triptych.doctor import diagnose, report_lines

    diagnosis = diagnose()
    return Outcome(tuple(report_lines(diagnosis)), diagnosis.model_dump(mode="json"))
