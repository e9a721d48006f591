"""An evaluation in a few lines, for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

_NUM_CONFUSIONS = 5
_NUM_GROUPS = 8


def summarize(content: Mapping[str, Any]) -> list[str]:
    """Return the lines to show of the content of a scores.json."""
    lines = list_scores(content["scores"])
    for kind, groups in content["breakdown"].items():
        lines += ["", f"by {kind}:", *_list_groups(groups, content["scores"]["titles"])]
    if content["confusions"]:
        lines += ["", "most frequent confusions (expected -> found):"]
        lines += [
            f"  {one['count']:>6,} x {_show(one['from'])} -> {_show(one['to'])}"
            for one in content["confusions"][:_NUM_CONFUSIONS]
        ]
    if speed := content["speed"]:
        lines += ["", f"{speed['rows_per_s']:,.1f} rows/s ({speed['engine']})"]
    return lines


def list_scores(scores: Mapping[str, Any]) -> list[str]:
    """Return a line for each of `Scores.to_dict()`: its title, value and interval."""
    titles, intervals = scores.get("titles", {}), scores.get("intervals", {})
    width = max([len(title) for title in titles.values()], default=0)
    lines = [f"  {'rows':<{width}}  {scores['rows']:>7,}"]
    for name, title in titles.items():
        interval = ""
        if name in intervals:
            low, high = intervals[name]
            interval = f"  [{low:.2f}, {high:.2f}]"
        lines.append(f"  {title:<{width}}  {scores[name]:>7.2f}{interval}")
    return lines + [
        f"  {title}: {scores[f'{name}_signature']}"
        for name, title in titles.items()
        if f"{name}_signature" in scores
    ]


def _list_groups(groups: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[str]:
    shown = groups[:_NUM_GROUPS]
    width = max(len(f"{group['group']}") for group in shown)
    lines = []
    for group in shown:
        figures = ", ".join(
            f"{titles.get(name, name)} {value[0]:.1f} [{value[1]:.1f}, {value[2]:.1f}]"
            for name, value in group.items()
            if name not in ("group", "rows")
        )
        lines.append(f"  {group['group']:<{width}}  {group['rows']:>6,} rows  {figures}")
    if len(groups) > len(shown):
        lines.append(f"  ... and {len(groups) - len(shown)} more")
    return lines


def _show(text: str) -> str:
    return repr(text) if text else "nothing"
