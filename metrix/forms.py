"""Which losses have a Metrix form, with which pairs and at which level; every refusal gives its reason."""

from __future__ import annotations

from typing import Any

from torch import nn

import baselines
from baselines.form import Loss
from metrix.rivals._form import Rival

LEVELS = ("input", "feature", "embedding")


def refusal(
    loss: str | nn.Module,
    at: str = "embedding",
    stage: str | int | None = None,
    pairs: str = "alternate",
    hardest: int | str | None = None,
    stages: tuple[str, ...] | None = None,
    **_: Any,
) -> str | None:
    """Return why this combination has no Metrix form, or None if it has one.

    `loss` is a name, a loss, or a rival that stands in for its loss. `stages` are those of the network, if known.
    Other arguments of `Metrix` restrict nothing and are accepted.
    """
    loss = loss.loss if isinstance(loss, Rival) and loss.before_metrix else loss
    kind = baselines.find(loss) if isinstance(loss, str) else type(loss)
    name = kind.__module__.rpartition(".")[2]
    if not issubclass(kind, Loss):
        return f"{kind.__name__} is not one of the losses of `baselines`, so it has no label weights to mix"
    if kind.mixed is None:
        return f"{name} has no Metrix form: {kind.why_no_metrix}"
    if pairs in ("pos-pos", "neg-neg") and kind.mixed == "anchors":
        return f"{name} refuses pairs={pairs!r}: its mixed examples are anchors, which mix two different classes"
    if pairs in kind.refused_pairs:
        return f"{name} refuses pairs={pairs!r}: {kind.refused_pairs[pairs]}"
    if hardest not in (None, "all") and pairs in ("pos-pos", "neg-neg"):
        return f"hardest={hardest!r} keeps the most similar examples of other classes, so pairs={pairs!r} refuses it"
    if kind.anchors == "proxies" and pairs == "anc-neg" and at != "embedding":
        return f"{name} has pairs='anc-neg' at='embedding' only: its anchors are proxies, which have no {at} to mix"
    if at == "feature" and stages is not None and stage is not None:
        if stage not in stages and not (isinstance(stage, int) and -len(stages) <= stage < len(stages)):
            return f"no stage {stage!r} in this network; it has {', '.join(stages)}"
        if hardest is not None and stage not in (stages[-1], -1, len(stages) - 1):
            return no_hardest(hardest, stage)
    return None


def no_hardest(hardest: int | str, stage: str | int) -> str:
    """Return why partners cannot be the hardest ones at a stage before the last."""
    return (
        f"hardest={hardest!r} needs the clean embeddings, which are not known yet where stage={stage!r} is mixed; "
        "there partners are drawn at random"
    )
