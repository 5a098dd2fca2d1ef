"""Backbones by name."""

import timm
import torch

from harness.training import backbones
from harness.training.backbones import names


def test_names_match_a_pattern():
    assert names("test_convnext*") == ("test_convnext", "test_convnext2", "test_convnext3")


def test_the_conversion_of_timm_is_taken_from_its_loader_which_stays_the_same():
    load = timm.models._builder.load_pretrained
    classifier, convert = backbones.conversion("test_vit", {}, backbones.on_meta("test_vit", {}))
    assert timm.models._builder.load_pretrained is load
    assert classifier == {"head.weight", "head.bias"}
    published = {
        "visual.class_embedding": torch.ones(64),
        "visual.ln_post.bias": torch.ones(64),
        "text": torch.ones(1),
    }
    assert {name: tuple(tensor.shape) for name, tensor in convert(published).items()} == {
        "cls_token": (1, 1, 64),
        "norm.bias": (64,),
    }
    assert len(published) == 3, "what is converted stays the same"
    assert backbones.conversion("resnet18", {}, backbones.on_meta("resnet18", {}))[1](published) == published
