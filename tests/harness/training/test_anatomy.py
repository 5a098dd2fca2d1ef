"""The anatomy of backbones: their stages, and modules that are rejected as a stage. Networks without weights."""

import pytest

from harness.training.anatomy import anatomy, stages
from harness.training.embedder import problems


@pytest.mark.parametrize(
    ("backbone", "stage", "reason"),
    [
        ("test_resnet", "layer9", "no stage 'layer9'; its stages are act1, layer1"),
        ("test_resnet", 5, "no stage 5; its stages are act1, layer1"),
        (
            "test_resnet",
            "layer2.0.conv1",
            "do not accept added rows; its stages are act1, layer1",
        ),  # beside a shortcut
        ("test_resnet", "global_pool", "not called in a forward pass; its stages"),
        ("twins_svt_small", "blocks.0", "not called in a forward pass; its stages are norm"),  # a list of blocks
        ("hrnet_w18_small", "stage2", "returns a list of 2, not one tensor"),
        ("tnt_s_legacy_patch16_224", "blocks.3", "returns a tuple of 2, not one tensor"),
        ("crossvit_tiny_240", None, "ends in a list of 2, not in one feature map"),
    ],
)
def test_a_stage_that_cannot_be_mixed_is_rejected_with_the_stages_that_can(backbone, stage, reason):
    assert reason in " ".join(problems(backbone, pretrained=False, stage=stage))


def test_the_stages_of_a_backbone():
    assert stages("test_convnext") == ("stages.0", "stages.1", "stages.2", "stages.3")


def test_anatomy_is_cached_by_the_text_of_its_options():
    first = anatomy("test_vit", {"img_size": [32, 32], "depth": 2})
    assert anatomy("test_vit", {"depth": 2, "img_size": [32, 32]}) is first
    assert anatomy("test_vit", {"img_size": [32, 32], "depth": 3}) is not first
