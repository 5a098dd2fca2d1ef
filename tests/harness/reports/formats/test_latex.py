import re
import subprocess

import pytest

from harness.config import Level
from harness.leaderboard import published
from harness.leaderboard.compose import board_of
from harness.reports.formats import latex
from harness.reports.latex_tables import escape


def compiled(need, folder, name="leaderboard"):
    """The text of every page of a document, as a reader sees it."""
    words = [need("pdflatex"), "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    fonts = _said(need("pdffonts"), f"{name}.pdf", folder=folder)
    assert "Type 3" not in fonts, "bitmap fonts"
    return _said(need("pdftotext"), "-layout", f"{name}.pdf", "-", folder=folder)


def _said(*words, folder):
    return subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_booktabs_without_vertical_rules(judged):
    text = latex.render(judged)
    assert text.count(r"\begin{table}") == text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert not re.search(r"\\begin\{tabular\}\{[^\n]*\|", text)
    assert r"Contrastive & 60.0 & {\scriptsize $\pm$\,0.4} &  & 30.0 &" in text
    assert r"\quad + Metrix, feature & \bfseries 62.0 & {\scriptsize $\pm$\,0.4} & {\scriptsize $+$2.0\," in text
    assert r"\quad + Metrix, input & {\bfseries \underline{62.0}} &" in text
    assert r"\,$\pm$\,0.2\rlap{$^\dagger$}} &" in text
    assert r"\label{tab:small-glyphs-test-resnet}" in text
    assert r"the 95\,\% t-interval over $n = 5$ training seeds" in text


def test_names_are_escaped_and_the_text_is_plain(board, awkward):
    text = latex.render(board)
    assert escape(awkward) == (
        r"a\_b\%c\&d\#e\textless{}f\textgreater{}g\textbar{}h*\~{}\^{}\{\}"
        r"\textbackslash{}$\$$"
    )
    assert escape(awkward) in text
    assert text.isascii()
    assert escape("é 中") == "é U+4E2D"


def test_blocks_apart_have_labels_of_their_own(apart):
    labels = re.findall(r"\\label\{(.*?)\}", latex.render(apart))
    assert labels == ["tab:small-glyphs-test-resnet-1", "tab:small-glyphs-test-resnet-2"]


def test_the_document_compiles_alone_and_shows_what_it_says(need, board, awkward, tmp_path):
    latex.write(board, tmp_path)
    text = compiled(need, tmp_path)
    assert re.search(r"Contrastive\s+50\.0\s*± ?24\.8", text)
    assert re.search(r"\+ Metrix, input\s+52\.0\s*± ?26\.2\s+\+2\.0\s*± ?2\.5", text)
    assert awkward[3:12] == "%c&d#e<f>"
    assert awkward[3:12] in text
    assert "Partial: 8 of 9 trials" in latex.render(board)
    assert "No row is marked as best and no difference as significant" in text


def test_several_datasets_are_column_groups_and_long_tables_are_several(need, make_trial, make_record, tmp_path):
    arms = [f"contrastive[margin=0.{i:03d}]" for i in range(1, 201)]
    records = [make_record(make_trial(arm, dataset=d), 0.5) for arm in arms for d in ("glyphs", "omniglot")]
    latex.write(board_of(records), tmp_path)
    text = compiled(need, tmp_path)
    assert re.search(r"glyphs\s+omniglot\n", text)
    assert "Part 5 of 5" in text
    assert all(f"[margin=0.{margin}]" in text for margin in ("001", "1", "199"))


def test_it_can_be_read_into_a_paper_without_siunitx(need, judged, tmp_path):
    latex.write(judged, tmp_path)
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "paper.tex").write_text(head + r"Before. \input{leaderboard} After.\end{document}")
    text = compiled(need, tmp_path, "paper")
    assert re.search(r"Before\.\s+After\.", text)
    assert re.search(r"\+ Metrix, feature\s+62\.0 ?± ?0\.4\s+\+2\.0\s*± ?0\.2†", text)


def test_an_ablation_shows_the_settings_that_differ(make_trial, make_record):
    arms = ["contrastive", "contrastive+embedding", "contrastive+embedding[weight=0.2,hardest=3]"]
    text = latex.render(board_of(make_record(make_trial(arm), 0.5) for arm in arms))
    table = text[text.index("Ablation of Metrix: Contrastive on glyphs") :]
    assert "$w$ & $k$ & \\multicolumn{2}{c}{R@1}" in table
    assert "no Metrix &  & 50.0 &" in table
    assert "0.2 & 3 & 50.0 &" in table
    assert "0.4 & all & 50.0 &" in table
    assert Level().weight == 0.4


def test_published_rows_are_grey_cited_and_in_no_difference(make_trial, make_record, tmp_path):
    records = [
        make_record(make_trial(dataset="cub200", backbone="resnet50", dim=512), 0.6, best_test_epoch={"R@1": 0.62})
    ]
    board = board_of(records, published=published.load())
    text = latex.render(board)
    assert r"\color{gray} Contrastive + Metrix, feature \cite{metrix_readme} & \color{gray} 67.4 &" in text
    assert r"Contrastive \color{gray}\cite{metrix_readme} & \color{gray} 64.7 & 60.0 &" in text
    assert "2.0 (n = 1) \\\\" in text, "inflation: the best test epoch minus the last"
    assert latex.write(board, tmp_path).with_suffix(".bib").read_text().count("@misc") == 3
    assert text.count("differs between publications, in points: contrastive by 0.9 (2 publications).") == 2


@pytest.mark.parametrize("mean", [0.9996, 0.5])
def test_a_perfect_score_has_room(mean, make_trial, make_record):
    text = latex.render(board_of([make_record(make_trial(), mean)]))
    assert f"table-format={3 if mean > 0.9 else 2}.1" in text
