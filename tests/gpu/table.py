"""Format all results as one section of Markdown in the style of results/LOG.md."""

from collections.abc import Iterable, Sequence
from typing import Any

SAME = ("device", "driver", "torch", "revision", "uncommitted", "data")  # only what agrees in these stands together


def table(lines: Sequence[dict[str, Any]], head: dict[str, Any], command: str) -> str:
    """The section: what it was measured on, figures, tests, and what did not run.

    lines: results as they were written, the oldest first; of each the newest counts, and those of another machine,
        revision or data do not.
    head: what the machine is; empty where nothing ran.
    """
    own = [line for line in lines if all(line.get(key) == head.get(key) for key in SAME)]
    runs = {line["piece"]: number for number, line in enumerate(own) if "outcome" in line}
    ends = {name: own[number] for name, number in runs.items()}
    figures = {(line["piece"], line["what"]): line for line in own if "what" in line}
    ran = [line for line in ends.values() if line["outcome"] != "skipped"]
    skipped = [line for line in ends.values() if line["outcome"] == "skipped"]
    parts = [title(own, head), about(head, command)]
    where = head.get("device", "")
    measured = f"measured on a {where}" if where.startswith("stand-in") else "measured"
    parts.append(rows(("figure", measured), ((cell(f["what"]), cell(value_of(f))) for f in figures.values())))
    parts.append(
        rows(
            ("ran", "outcome", "seconds", "why"),
            (
                (line["piece"], line["outcome"], str(line.get("seconds", "")), cell(line.get("why", "")))
                for line in ran
            ),
        )
    )
    if skipped:
        parts.append("Skipped:\n\n" + "\n".join(f"- {line['piece']}: {line['why']}" for line in skipped))
    return "\n\n".join(filter(None, parts)) + "\n"


def title(lines: Sequence[dict[str, Any]], head: dict[str, Any]) -> str:
    """Return date and card."""
    date = lines[-1]["at"][:10] if lines else "nothing ran"
    return f"## {date} · What one GPU says: {head.get('device', 'nothing ran')}"


def about(head: dict[str, Any], command: str) -> str:
    """Return the command and the settings that each figure must name."""
    if not head:
        return f"`{command}`: nothing ran."
    cuda = f" (CUDA {head['cuda']}, cuDNN {head['cudnn']})" if head.get("cuda") else ""
    changed = f" with uncommitted changes {head['uncommitted']}" if head.get("uncommitted") else ""
    missing = f" Not installed: {', '.join(head['missing'])}." if head.get("missing") else ""
    caution = ""
    if head["device"].startswith("stand-in"):
        caution = " A processor stood in for the GPU, with small sizes: no number here says anything of a GPU."
    return (
        f"`{command}`; {head['device']}, driver {head['driver']}, torch {head['torch']}{cuda}, timm {head['timm']}, "
        f"Python {head['python']}, {head['cores']} cores, revision {head['revision']}{changed}. "
        f"Data: {head['data']}; weights: {head['weights']}. Medians, in brackets the least and the most of n rounds."
        f"{missing}{caution}"
    )


def value_of(figure: dict[str, Any]) -> str:
    """Return a value with its unit and, after several rounds, its range."""
    unit = f" {figure['unit']}" if figure.get("unit") else ""
    text = f"{number(figure['value'])}{unit}"
    if "spread" in figure:
        least, most = map(number, figure["spread"])
        text += f" ({least} to {most}, n = {figure['rounds']})"
    return text


def number(value: Any) -> str:
    """Return three significant digits, thousands with commas; text unchanged."""
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def rows(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or nothing if it is empty."""
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"| {' | '.join(names)} |", "|" + "---|" * len(names), *body]) if body else ""


def cell(text: str) -> str:
    """Return text escaped for one cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
