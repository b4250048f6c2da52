"""Universal dictionaries: one sparse code that several models share.

The names below are loaded when they are first asked for: records are read by reports, which need no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.dictionaries.coder import CoderConfig, UniversalSAE
    from triptych.dictionaries.settings import UniversalConfig
    from triptych.dictionaries.training import train_universal_sae
    from triptych.dictionaries.universality import co_firing, firing_entropy

_HOMES = {
    "CoderConfig": "coder",
    "UniversalConfig": "settings",
    "UniversalSAE": "coder",
    "co_firing": "universality",
    "firing_entropy": "universality",
    "train_universal_sae": "training",
}

__all__ = ["CoderConfig", "UniversalConfig", "UniversalSAE", "co_firing", "firing_entropy", "train_universal_sae"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
