import re
import shutil
import subprocess

import pytest

from harness.reports import latex

ENGINE = shutil.which("pdflatex")
BOOKTABS = (
    shutil.which("kpsewhich") and not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode
)


def test_booktabs_without_vertical_rules(board):
    text = latex.render(board)
    assert text.count(r"\begin{table}") == text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert r"\begin{tabular}{@{}lrrrrrrr@{}}" in text
    assert r"contrastive & 50.0 $\pm$ 24.8 &  & 25.0 $\pm$ 12.4 &  & 2.0 s & 1.00$\times$ & 3 \\" in text
    assert r"\enspace +input & 52.0 $\pm$ 26.2 & {\scriptsize +2.0 $\pm$ 2.5}" in text
    assert r"\label{tab:small-glyphs-test-resnet}" in text
    assert "95~\\% t-interval over n = 3 training seeds" in text


def test_names_are_escaped_and_the_text_is_plain(board, awkward):
    text = latex.render(board)
    assert latex.escape(awkward) == (
        r"a\_b\%c\&d\#e\textless{}f\textgreater{}g\textbar{}h*\textasciitilde{}\textasciicircum{}\{\}"
        r"\textbackslash{}\$"
    )
    assert latex.escape(awkward) in text
    assert text.isascii()
    assert latex.escape("é 中") == "é U+4E2D"


def test_blocks_apart_have_labels_of_their_own(apart):
    labels = re.findall(r"\\label\{(.*?)\}", latex.render(apart))
    assert labels == ["tab:small-glyphs-test-resnet-1", "tab:small-glyphs-test-resnet-2"]


@pytest.mark.skipif(not (ENGINE and BOOKTABS), reason="needs pdflatex with booktabs")
def test_the_fragment_compiles(board, tmp_path):
    latex.write(board, tmp_path)
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{leaderboard}\end{document}"
    (tmp_path / "paper.tex").write_text(document)
    done = subprocess.run(
        [ENGINE, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:]
