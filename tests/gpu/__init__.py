"""Tests, measurements and trials on photographs that need a GPU and take minutes, in one command.

    make gpu DATA=photographs WEIGHTS=tf_efficientnet_lite0.safetensors
    python -m tests.gpu --data photographs --weights tf_efficientnet_lite0.safetensors --minutes 8

`plan.py` lists the pieces, the most important first. `__main__.py` runs them one after another in a process of their
own (`worker.py`), which it ends and starts again when a piece hangs, and writes every result to a file as soon as it
is there. A piece is a function of a `Place`; the tests among them run under pytest too (marker `gpu`). Needed are
torch, timm, numpy, pandas, pillow, safetensors and pydantic, with what these need; neither ray nor pytest.
"""
