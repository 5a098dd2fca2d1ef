"""Editions: which digests of the evaluator compute the same numbers."""

import shutil

from harness.evaluation import editions
from harness.evaluation.editions import EDITIONS, edition_of, evaluator_digest
from harness.fairness.rules import factors_of

HOW = """harness/evaluation/retrieval.py, symmetry.py or metrics/ changed: their digest {} is in no edition.
Compare the scores of the old and the new code, bit for bit: random data, ties, roles, several BLOCK_BYTES.
Same numbers: add the digest to the last edition in harness/evaluation/editions.py.
Other numbers: add a new edition there, and an entry in CHANGELOG.md."""


def test_the_evaluator_belongs_to_the_last_edition():
    digest = evaluator_digest()
    assert digest in EDITIONS[-1].digests, HOW.format(digest)


def test_no_digest_is_listed_twice():
    digests = [digest for edition in EDITIONS for digest in edition.digests]
    assert len(set(digests)) == len(digests)
    assert {len(digest) for digest in digests} == {64}
    assert len({edition.name for edition in EDITIONS}) == len(EDITIONS)


def test_digests_of_one_edition_are_equal_and_an_unknown_one_stands_alone():
    first, *_, last = EDITIONS[0].digests
    assert edition_of(first) == edition_of(last) == "edition 1"
    assert edition_of("f" * 64) == "f" * 64
    assert edition_of(None) is None


def test_the_digest_depends_on_the_sources_alone(tmp_path, monkeypatch):
    here = editions.Path(editions.__file__).parent
    shutil.copytree(here, tmp_path / "evaluation", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(editions, "__file__", str(tmp_path / "evaluation" / "editions.py"))
    before = evaluator_digest()
    monkeypatch.undo()
    assert before == evaluator_digest()
    monkeypatch.setattr(editions, "__file__", str(tmp_path / "evaluation" / "editions.py"))
    (tmp_path / "evaluation" / "spread.py").write_text("")
    assert before == evaluator_digest(), "no score depends on it"
    (tmp_path / "evaluation" / "metrics" / "new.py").write_text("TITLE = 'new'")
    assert before != evaluator_digest()


def test_records_of_one_edition_share_a_table_and_those_of_an_unknown_digest_do_not(make_trial, make_record):
    record = make_record(make_trial())
    first, other, unknown = (
        record.model_copy(update={"provenance": {**record.provenance, "evaluator": digest}})
        for digest in (EDITIONS[0].digests[0], EDITIONS[0].digests[-1], "f" * 64)
    )
    assert factors_of(first) == factors_of(other)
    assert factors_of(first) != factors_of(unknown)
