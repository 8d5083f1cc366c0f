"""Packages that only some verbs need: the error that names what is missing and what brings it."""

from importlib.util import find_spec

from llm_carbon_meter.records import MeterError


def require(wanted: str, extra: str, *modules: str) -> None:
    """Go on only where these modules are installed; none of them is imported.

    Args:
        wanted: what needs them, as in ``train``.
        extra: of this package, that installs them.
        modules: their names, without dots.

    Raises:
        MeterError: one is missing.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MeterError(
            f"{wanted} needs {', '.join(missing)}, not installed here: "
            f"pip install 'llm-carbon-meter[{extra}]'"
        )
