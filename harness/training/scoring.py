"""Read the test split: enter the read in the ledger, score the embeddings, keep the results."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from harness.evaluation import retrieval
from harness.evaluation.editions import evaluator_digest
from harness.evaluation.spread import spread
from harness.fairness.ledger import Ledger
from harness.fairness.protocols import FAIR, PROTOCOLS
from harness.runs.record import least_recall, write_json
from harness.runs.run import Run
from harness.training import checkpoint
from harness.training.bench import Bench


class TestCurve:
    """Test scores by epoch, for protocols that record them; only the record reads them.

    Each score is kept with the digest of its weights, because an epoch repeated after a crash may end in others.
    """

    def __init__(self, path: Path):
        self.path = path

    def add(self, epoch: int, weights: str, score: Callable[[], dict[str, float]]) -> None:
        """Keep the scores of an epoch unless these weights are scored already, and drop later epochs.

        Later epochs are left over from before a crash and will be trained again.
        """
        before = self._read()
        curve = {earlier: row for earlier, row in before.items() if int(earlier) <= epoch}
        if curve.get(str(epoch), {}).get("weights") != weights:
            curve[str(epoch)] = {"weights": weights, "scores": score()}
        if curve != before:
            write_json(self.path, curve)

    @property
    def best(self) -> dict[str, float] | None:
        """Return {"epoch": …, "R@1": …} of the epoch with the highest test R@1, the earliest on ties; None if empty.

        If R@1 is not scored, the smallest K that is scored takes its place.
        """
        curve = {epoch: row["scores"] for epoch, row in self._read().items()}
        if not curve:
            return None
        metric = least_recall(next(iter(curve.values()))) or FAIR.metric
        epoch = max(curve, key=lambda e: (curve[e][metric], -int(e)))
        return {"epoch": int(epoch), **curve[epoch]}

    def _read(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}


@dataclass(frozen=True)
class TestRead:
    """One read of the test split: scores, and the embeddings (n, d), ids, labels and roles they come from."""

    result: retrieval.Evaluation
    embeddings: Tensor
    ids: np.ndarray
    labels: np.ndarray
    roles: np.ndarray | None
    checkpoints: int

    @property
    def values(self) -> dict[str, float]:
        return self.result.values

    @property
    def spread(self) -> dict[str, float]:
        return spread(self.embeddings.cpu().numpy())

    @property
    def queries(self) -> np.ndarray:
        """Return the ids of the query images: all images, or those with the role of a query."""
        return self.ids if self.roles is None else self.ids[self.roles == "query"]


def read_test(bench: Bench, run: Run) -> TestRead:
    """Read the test split with the model as it is, after entering the read in the ledger."""
    dataset, trial, test = bench.dataset, bench.trial, bench.split_images("test")
    entry = Ledger.of(run).read(
        cell="/".join((*trial.cell, trial.repetition)),
        checkpoint=checkpoint.state_digest(bench.model.state_dict()),
        split=bench.split_fingerprint,
        evaluator=evaluator_digest(),
    )
    embeddings, ids = bench.embed(test.indices), np.array([dataset.keys[i] for i in test.indices])
    roles = None if dataset.role is None else dataset.role[test.indices.numpy()]
    result = score_test(embeddings, test.labels, ids, roles, bench.scored.ks["test"])
    return TestRead(result, embeddings, ids, test.labels, roles, entry.checkpoints)


def score_test(
    embeddings: np.ndarray | Tensor,
    labels: np.ndarray,
    ids: np.ndarray,
    roles: np.ndarray | None,
    ks: Sequence[int],
) -> retrieval.Evaluation:
    """Score test embeddings (n, d): all among each other, or, with roles (n,), the queries in the gallery."""
    if roles is None:
        return retrieval.evaluate(embeddings, labels, ks=ks)
    is_query, in_gallery = roles == "query", roles == "gallery"
    return retrieval.evaluate(
        embeddings[is_query],
        labels[is_query],
        ks=ks,
        gallery=embeddings[in_gallery],
        gallery_labels=labels[in_gallery],
        query_ids=ids[is_query].tolist(),
        gallery_ids=ids[in_gallery].tolist(),
    )


def keep_test(bench: Bench, run: Run, test: TestRead) -> tuple[str, ...]:
    """Keep the results of the test read beside the record, and return the notes that its row needs."""
    trial = bench.trial
    if trial.keep != "none":
        run.keep_queries(
            trial,
            embeddings=test.embeddings.cpu().numpy().astype(np.float16),
            ids=test.ids,
            labels=test.labels,
            queries=test.queries[test.result.queries],
            **{f"query {name}": values for name, values in test.result.per_query.items()},
            **({} if test.roles is None else {"roles": test.roles.astype(str)}),
        )
    if test.checkpoints == 1 or PROTOCOLS[trial.protocol].watches_test:
        return ()
    return (f"FAIR-03 test read again for {'/'.join(trial.cell)} {trial.seed_and_fold}",)
