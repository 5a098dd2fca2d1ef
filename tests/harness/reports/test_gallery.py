"""What a page shows of retrieval: the neighbours that a double loop finds, the same queries for all arms."""

import numpy as np
import pytest
from PIL import Image

from harness.data.datasets import Dataset
from harness.leaderboard.collection import collect
from harness.reports import gallery
from harness.reports.formats import web
from harness.runs.run import Run


@pytest.fixture
def dataset(monkeypatch):
    """Twelve grey images of four classes, which `glyphs` is for this test."""
    made = Dataset(
        name="glyphs",
        keys=tuple(f"k{i}" for i in range(12)),
        labels=np.repeat(np.arange(4), 3),
        class_names=tuple("abcd"),
        split=np.array(["test"] * 12),
        read=lambda i: Image.new("L", (32, 32), 20 * i),
    )
    monkeypatch.setattr("harness.data.datasets.load", lambda name, data, cache, **options: made)
    return made


@pytest.fixture
def folder(tmp_path, make_trial, make_record, dataset):
    """Two arms, the second with other embeddings; images 0–2 only ask, 3–5 only answer where `roles` are given."""

    def make(roles=None):
        run = Run(tmp_path)
        for number, arm in enumerate(("contrastive", "contrastive+input")):
            trial = make_trial(arm)
            embeddings = np.random.default_rng(number).normal(size=(12, 5)).astype(np.float16)
            ids = np.array(dataset.keys)
            more = {} if roles is None else {"roles": roles}
            asked = ids if roles is None else ids[roles == "query"]
            run.keep_queries(trial, embeddings=embeddings, ids=ids, labels=dataset.labels, queries=asked, **more)
            run.finish(make_record(trial, 0.5))
        return collect([tmp_path])

    return make


def nearest(number, asked, answering):
    e = np.random.default_rng(number).normal(size=(12, 5)).astype(np.float16).astype(np.float64)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    return sorted((i for i in answering if i != asked), key=lambda i: -e[asked] @ e[i])[: gallery.NEIGHBOURS]


def test_neighbours_are_those_of_a_loop_and_right_ones_are_marked(folder, dataset):
    collection = folder()
    (shelf,) = gallery.with_gallery(collection.board(), collection).gallery
    assert shelf.arms == ("contrastive", "contrastive+input")
    assert len({dataset.labels[int(shelf.names[asked][1:])] for asked, _ in shelf.queries}) == 4
    for asked, found in shelf.queries:
        query = int(shelf.names[asked][1:])
        for number, near in enumerate(found):
            images = [int(shelf.names[i][1:]) for i, _ in near]
            assert images == nearest(number, query, range(12))
            assert [right for _, right in near] == [dataset.labels[i] == dataset.labels[query] for i in images]
    assert all(image.startswith("data:image/png;base64,") for image in shelf.images)
    assert "training seed 0" in shelf.note


def test_queries_search_the_gallery_alone_where_roles_differ(folder):
    roles = np.array(["query"] * 6 + ["gallery"] * 6)
    collection = folder(roles)
    (shelf,) = gallery.with_gallery(collection.board(), collection).gallery
    for asked, found in shelf.queries:
        query = int(shelf.names[asked][1:])
        assert query < 6
        assert [int(shelf.names[i][1:]) for i, _ in found[0]] == nearest(0, query, range(6, 12))


def test_without_the_dataset_names_stand_for_images(folder, monkeypatch):
    collection = folder()

    def gone(name, data, cache, **options):
        raise gallery.DatasetError("it is gone")

    monkeypatch.setattr("harness.data.datasets.load", gone)
    (shelf,) = gallery.with_gallery(collection.board(), collection).gallery
    assert set(shelf.images) == {""}
    assert "Images cannot be shown: it is gone." in shelf.note


def test_trials_that_kept_nothing_have_no_gallery(tmp_path, make_trial, make_record):
    Run(tmp_path).finish(make_record(make_trial(), 0.5))
    collection = collect([tmp_path])
    assert gallery.with_gallery(collection.board(), collection).gallery == ()


def test_the_page_shows_it(folder):
    collection = folder()
    text = web.render(gallery.with_gallery(collection.board(), collection))
    assert text.count("data:image/png;base64,") == 12
