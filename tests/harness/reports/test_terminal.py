import io
import threading

import pytest
from rich.console import Console

from harness.leaderboard.compose import board_of
from harness.reports import terminal


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def printed(stream):
    return stream.getvalue().splitlines()


@pytest.fixture
def lines(clock):
    stream = io.StringIO()
    view = terminal.View(terminal.console(stream), clock)
    view.stream = stream
    return view


@pytest.fixture
def panel(clock):
    stream = io.StringIO()
    view = terminal.View(Console(file=stream, force_terminal=True, width=100, height=30, markup=False), clock)
    view.stream = stream
    yield view
    if view._live is not None:
        view.end(interrupted=True)


def drawn(view, width=100):
    """The panel as it would be drawn now."""
    console = Console(file=io.StringIO(), width=width, height=30)
    console.print(view._panel())
    return console.file.getvalue()


def test_a_leaderboard_fits_a_hundred_columns_and_keeps_its_brackets(make_trial, make_record):
    arms = ("contrastive[margin=0.3]", "contrastive[margin=0.3]+feature[stage=layer3,pairs=pos-neg]", "untrained")
    records = [make_record(make_trial(arm, seed), 0.5 + seed / 20) for arm in arms for seed in range(3)]
    stream = io.StringIO()
    terminal.show(board_of(records), terminal.console(stream))
    assert max(map(len, printed(stream))) <= 100
    assert "contrastive[margin=0.3]" in stream.getvalue()
    assert "  +feature[stage=layer3,pairs=" in stream.getvalue()
    assert "55.0 ± 12.4" in stream.getvalue()  # std 0.05
    assert "\x1b" not in stream.getvalue()


def test_a_table_is_as_wide_as_its_words_and_sets_numbers_to_the_right():
    stream = io.StringIO()
    terminal.table("trials", ("id", "seconds"), [("a" * 150, 5), ("b[c]", 12)], terminal.console(stream))
    rows = printed(stream)
    assert rows[0].strip() == "trials"
    ends = [row.rstrip() for row in rows if row.strip().startswith(("aaa", "b[c]"))]
    assert [len(end) for end in ends] == [len(ends[0])] * 2


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    console.print("x", style="red")
    terminal.table("title", ("a",), [("b",)], console)
    assert "\x1b[3" not in console.file.getvalue()


def test_without_a_terminal_every_event_is_one_line(lines, clock, make_trial):
    trial, other = make_trial(epochs=8), make_trial("pixels")
    lines.begin(10, 2, 1)
    lines.started(trial, "gpu 1", 1)
    clock.now += 5
    lines.progress(trial.id, 1, 8, 0.7, 0.123)  # too soon after the start for a line
    clock.now += 30
    lines.progress(trial.id, 2, 8, 0.61234, 0.2)
    lines.failed(trial.id, "ValueError: no\nmore", 1, True)
    lines.started(trial, "", 2)
    clock.now += 40
    lines.progress(trial.id, 3, 8, 0.5, None)  # a protocol without validation
    lines.finished(trial.id, 0.5, 42.0)
    lines.started(other, "", 1)
    lines.failed(other.id, "gone", 3, False)
    lines.finished("unseen", 0.25, 1.0, "R@10")
    lines.note("the last word")
    lines.end(interrupted=False)
    name = "glyphs/test_resnet contrastive s0"
    assert printed(lines.stream) == [
        "10 trials, 2 already done, 1 at a time",
        f"started   {name}  on gpu 1",
        f"running   {name}  epoch 2/8  loss 0.6123  validation MAP@R 20.0",
        f"failed    {name}  attempt 1: ValueError: no; retrying",
        f"started   {name}  attempt 2",
        f"running   {name}  epoch 3/8  loss 0.5",
        f"finished  {name}  R@1 50.0 in 42 s  [3/10]",
        "started   glyphs/test_resnet pixels s0",
        "failed    glyphs/test_resnet pixels s0  attempt 3: gone",
        "finished  unseen  R@10 25.0 in 1.0 s  [4/10]",
        "the last word",
        "✗ glyphs/test_resnet pixels s0: gone",
        "4 of 10 trials done, 2 of them in this run, in 1:15; 1 failed",
    ]


def test_time_left_from_finished_trials_running_epochs_and_slots(lines, clock, make_trial):
    first, second, *done = (make_trial(seed=seed, epochs=8) for seed in range(4))
    lines.begin(10, 2, 2)
    assert lines.time_left() is None
    for trial, seconds in zip(done, (10.0, 20.0), strict=True):
        lines.started(trial, "", 1)
        lines.finished(trial.id, 0.5, seconds)
    lines.started(second, "", 1)
    clock.now += 1
    lines.started(first, "", 1)
    clock.now += 4
    lines.progress(first.id, 2, 8, 0.5, 0.1)  # the first it tells of: epoch 1 was done before
    assert lines.time_left() == pytest.approx((24 + 10 + 4 * 15) / 2)  # 6 epochs of 4 s; 15 − 5; 4 wait


def test_time_left_of_the_last_trial_is_its_own(lines, clock, make_trial):
    trial = make_trial(epochs=8)
    lines.begin(1, 0, 4)
    lines.started(trial, "", 1)
    clock.now += 10
    lines.progress(trial.id, 1, 8, 0.5, 0.1)
    assert lines.time_left() == pytest.approx(70)  # not a fourth of it


def test_the_panel_shows_what_runs_and_what_happened(panel, clock, make_trial):
    first, second = make_trial(epochs=8), make_trial("contrastive+feature[stage=layer3]", epochs=8)
    panel.begin(12, 3, 2)
    panel.started(first, "", 1)
    panel.started(second, "", 2)
    clock.now += 61
    panel.progress(second.id, 3, 8, 0.25, 0.421)
    panel.finished(first.id, 0.5, 61.0)
    text = drawn(panel)
    assert "4/12" in text
    assert "1:01  about" in text
    row = next(line for line in text.splitlines() if "layer3" in line)
    assert row.split()[1:] == [
        *("contrastive+feature[stage=layer3]", "s0", "(attempt", "2)", "3/8", "0.25", "42.1", "1:01", "│")
    ]
    assert "✓ contrastive s0  R@1 50.0 in 61 s" in text
    assert all(len(line) == 70 for line in drawn(panel, width=70).splitlines())


def test_the_panel_stays_on_the_screen_however_many_run(panel, make_trial):
    panel.begin(500, 0, 200)
    for seed in range(200):
        panel.started(make_trial(seed=seed), "", 1)
    assert len(drawn(panel).splitlines()) <= 30
    assert "more" in drawn(panel)


def test_events_from_many_threads_while_the_panel_draws(panel, make_trial):
    trials = [make_trial(seed=seed, epochs=20) for seed in range(8)]
    panel.begin(8, 0, 8)

    def live(trial):
        panel.started(trial, "", 1)
        for epoch in range(20):
            panel.progress(trial.id, epoch + 1, 20, 0.5, 0.1)
            panel.note(f"{trial.seed} at {epoch}")
        panel.finished(trial.id, 0.5, 1.0)

    threads = [threading.Thread(target=live, args=(trial,), daemon=True) for trial in trials]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    panel.end(interrupted=False)
    assert "8 of 8 trials done" in panel.stream.getvalue()


def test_progress_is_a_bar_for_a_person_and_a_line_each_tenth_for_a_file():
    stream = io.StringIO()
    with terminal.progress("decoding", terminal.console(stream)) as step:
        for done in range(1, 31):
            step(done, 30)
    assert printed(stream) == [f"decoding: {3 * tenth} of 30" for tenth in range(1, 11)]
    stream = io.StringIO()
    with terminal.progress("decoding", Console(file=stream, force_terminal=True, width=100)) as step:
        for done in range(1, 31):
            step(done, 30)
    assert "30/30" in stream.getvalue()
