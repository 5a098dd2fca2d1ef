"""Figures of a trial, for papers: learning curves and, where it was analysed, positivity. matplotlib's door."""

from pathlib import Path

from harness.record import Record

COLORS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito: told apart by every kind of eye
COLUMN_INCHES = 3.35


def draw_trial(record: Record, path: Path) -> Path:
    """Draw the learning curves of a finished trial, and its positivity curve if its grid asked for an analysis.

    `path` ends in .pdf, .svg or .png; fonts are embedded and no date is written, so equal records give equal files.
    Raises ValueError for a trial that was not trained, and for another ending.
    """
    if not record.curve:
        raise ValueError(f"{record.id} was not trained: it has no curve to draw")
    if path.suffix not in (".pdf", ".svg", ".png"):
        raise ValueError(f"{path.name}: a figure ends in .pdf, .svg or .png")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    settings = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": record.id, "font.size": 8}
    positivity = record.analysis.get("positivity")
    columns = 3 if positivity else 2
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(1, columns, figsize=(COLUMN_INCHES * columns / 1.5, 2.2), layout="constrained")
        _learning(axes[0], axes[1], record)
        if positivity:
            _positivity(axes[2], positivity)
        figure.suptitle(f"{record.arm}, {record.trial.dataset.name}, seed {record.trial.seed}")
        path.parent.mkdir(parents=True, exist_ok=True)
        dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}
        figure.savefig(path, metadata=dates[path.suffix], dpi=200)
        pyplot.close(figure)
    return path


def _learning(left, right, record: Record) -> None:
    epochs = [epoch.epoch for epoch in record.curve]
    left.plot(epochs, [epoch.loss for epoch in record.curve], color=COLORS[0])
    left.set(xlabel="epoch", ylabel="training loss")
    for name, color in zip(("R@1", "MAP@R"), COLORS, strict=False):
        if name in record.curve[0].validation:
            right.plot(epochs, [100 * epoch.validation[name] for epoch in record.curve], color=color, label=name)
    right.axvline(record.selected_epoch, color="0.6", linewidth=0.8)
    right.set(xlabel="epoch", ylabel="validation, %")
    right.legend(frameon=False)


def _positivity(axes, curve: dict) -> None:
    axes.plot(curve["lambda"], curve["measured"], color=COLORS[0], label="measured")
    if curve["closed_form"]:
        axes.plot(curve["lambda"], curve["closed_form"], color=COLORS[1], linestyle="--", label="closed form")
    axes.set(xlabel="λ", ylabel="share that acts as positive", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
