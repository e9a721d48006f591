"""The settings of a run by section, those that are not the defaults marked."""

from typing import Any

from dragoman.configuration import flatten_settings
from dragoman.reporting.content import ReportContent
from dragoman.settings import Settings


def show_settings(content: ReportContent) -> dict[str, Any] | None:
    """Return the settings by section, those that are not the defaults marked."""
    defaults = flatten_settings(Settings())
    sections: dict[str, list[dict[str, Any]]] = {}
    for name, value in content.settings.items():
        section, _, rest = name.partition(".") if "." in name else ("general", "", name)
        default = defaults.get(name, value)
        is_changed = name != "version" and _write(default) != _write(value)
        sections.setdefault(section, []).append(
            {
                "name": rest,
                "value": _write(value),
                "default": _write(default) if is_changed else None,
            }
        )
    return {"sections": sections} if sections else None


def _write(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    shown = str(value)
    return shown if shown == shown.strip() else f'"{shown}"'
