"""The Embedder: any timm backbone, its stages, our pooling and head. Small networks without downloads."""

import hashlib
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from harness.training.anatomy import anatomy
from harness.training.backbones import ModelError
from harness.training.embedder import Embedder, problems

BACKBONES = {  # what comes out of forward_features, and the last stage
    "test_resnet": "layer4",  # (n, C, H, W)
    "test_vit": "norm",  # (n, 1 + L, C), a class token
    "test_vit2": "blocks.7",  # (n, 1 + L, C), a register token and no class token
    "test_efficientnet": "bn2",
    "test_convnext": "stages.3",
    "test_byobnet": "final_conv",
    "test_nfnet": "final_act",
    "test_mambaout": "stages.3",  # (n, H, W, C)
    "resnet18": "layer4",
    "mobilenetv3_small_050": "blocks.5",
    "mixer_s32_224": "norm",  # (n, L, C), a fixed image size
    "swin_tiny_patch4_window7_224": "norm",  # (n, H, W, C), a fixed image size and windows
}
SMALL = [name for name in BACKBONES if name.startswith("test_")]


def embedder(
    backbone="test_resnet",
    dim=8,
    side_px: int | None = 64,
    generator: torch.Generator | int = 0,
    pretrained: bool | str = False,
    **settings,
) -> Any:
    return Embedder(backbone, dim=dim, side_px=side_px, generator=generator, pretrained=pretrained, **settings)


def backbone_state(model):
    """As others' files hold it: contiguous."""
    return {name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}


def images(n=5, side_px=64, seed=1):
    return torch.randn(n, 3, side_px, side_px, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_embeddings_are_unit_vectors_and_the_last_map_is_a_stage(backbone):
    model, x = embedder(backbone).eval(), images(3)
    with torch.no_grad():
        z = model(x)
        maps = model.forward_to(BACKBONES[backbone], x)
        again = model.forward_from(BACKBONES[backbone], maps)
    assert z.shape == (3, 8)
    assert z.dtype == torch.float32
    assert z.norm(dim=1).sub(1).abs().max() < 1e-6
    assert (z[0] - z[1]).abs().max() > 1e-4, "the embeddings do not depend on the images"
    if not getattr(model.backbone.get_submodule(BACKBONES[backbone]), "inplace", False):  # in timm before 1.0.31
        assert model.stages()[-1] == BACKBONES[backbone]
    assert torch.equal(z, again)


@pytest.mark.parametrize("backbone", SMALL)
def test_added_rows_at_every_stage_give_the_same_embeddings_as_separate_rows(backbone):
    """mix(h) = two rows of h in another order: their embeddings are those of the images they came from."""
    model, x = embedder(backbone).eval(), images()
    with torch.no_grad():
        z = model(x)
        assert (z[4] - z[1]).abs().max() > 1e-4
        for stage in model.stages():
            clean, mixed = model.forward_joint(stage, x, lambda h: h[[4, 1]])
            assert (clean - z).abs().max() < 1e-5
            assert (mixed - z[[4, 1]]).abs().max() < 1e-5


def test_the_joint_pass_mixes_at_the_named_stage():
    """Against the ResNet run by hand up to layer2, mixed, and run on."""
    model, x = embedder(pooling="avg").eval(), images(4)
    net = model.backbone
    with torch.no_grad():
        h = net.layer2(net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(x))))))
        maps = net.layer4(net.layer3(0.3 * h[:2] + 0.7 * h[2:]))
        expected = F.normalize(model.head(maps.mean((2, 3))))
        _, mixed = model.forward_joint("layer2", x, lambda h: 0.3 * h[:2] + 0.7 * h[2:])
    assert (mixed - expected).abs().max() < 1e-6


def test_stages_are_given_by_name_module_or_index():
    model, x = embedder().eval(), images(3)
    assert model.stages() == ("act1", "layer1", "layer2", "layer3", "layer4")
    with torch.no_grad():
        by_name = model.forward_joint("layer2", x, lambda h: h.flip(0).sqrt())[1]
        for stage in (2, "2", -3, "layer2.0"):  # layer2 has one block
            assert torch.equal(model.forward_joint(stage, x, lambda h: h.flip(0).sqrt())[1], by_name)
        assert torch.equal(model.forward_to(-1, x), model.forward_to("layer4.0", x))


def test_a_joint_pass_removes_its_hook():
    model, x = embedder().eval(), images(3)
    z = model(x)
    model.forward_joint("layer2", x, lambda h: h[:1])  # no backward follows
    with pytest.raises(ZeroDivisionError):
        model.forward_joint("layer2", x, lambda h: 1 / 0)
    assert torch.equal(model(x), z)
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_of_the_joint_pass_are_those_of_separate_passes():
    model, x = embedder().double().eval(), images(4).double()
    w = torch.randn(6, 8, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    clean, mixed = model.forward_joint("layer2", x, lambda h: h[[3, 1]])
    joint = torch.autograd.grad(
        (torch.cat([clean, mixed]) * w).sum(), model.backbone.get_parameter("conv1.0.weight")
    )[0]
    separate = torch.autograd.grad(
        (model(x[[0, 1, 2, 3, 3, 1]]) * w).sum(), model.backbone.get_parameter("conv1.0.weight")
    )[0]
    assert clean.dtype == torch.double
    assert torch.allclose(joint, separate, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backbone", SMALL)
def test_gradient_checkpointing_is_rejected_in_a_joint_pass(backbone):
    model = embedder(backbone)
    model.backbone.set_grad_checkpointing(True)
    with pytest.raises(ModelError, match="gradient checkpointing"):
        model.forward_joint(model.stages()[0], images(), lambda h: h)


def test_a_layer_that_runs_again_in_the_backward_pass_is_never_silently_wrong():
    """A recomputation of the user's own around the stage: the hook is gone by then; torch must miss the rows."""
    model = embedder()
    run = model.backbone.layer3.forward
    model.backbone.layer3.forward = lambda h: checkpoint(lambda h: run(h).square(), h, use_reentrant=False)
    with pytest.raises(CheckpointError):
        model.forward_joint("layer3.0", images(), lambda h: h)[1].sum().backward()


def test_an_earlier_stage_cannot_be_entered():
    with pytest.raises(ModelError, match=r"at its last feature map 'layer4', not at 'layer2'; .*forward_joint"):
        embedder().forward_to("layer2", images())


def test_a_stage_that_changed_since_the_probe_is_rejected():
    model = embedder()
    block: Any = nn.Sequential(model.backbone.layer2)
    block.forward = lambda h: block[0](h)
    model.backbone.layer1.forward = lambda h: [block(h), block(h)][1]
    model.backbone.layer2 = block
    with pytest.raises(ModelError, match="more than once in a forward pass; its stages are act1"):
        model.forward_joint("layer2", images(), lambda h: h)


def hand_made(layout):
    """Last maps of one image, two channels: (1, 2, 3) plus (6, 4, 5) at three positions, and a class token of 9."""
    channels = torch.tensor([[1.0, 2, 3], [6, 4, 5]])
    return {
        "test_resnet": channels[None, :, None, :],
        "test_mambaout": channels.T[None, None],
        "test_vit": torch.cat([torch.full((1, 1, 2), 9.0), channels.T[None]], dim=1),
    }[layout]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_mambaout", "test_vit"])
@pytest.mark.parametrize(
    ("pooling", "pooled"), [("avg", (2, 5)), ("max", (3, 6)), ("avg+max", (5, 11)), ("token", (9, 9))]
)
def test_pooling_by_hand(backbone, pooling, pooled):
    if pooling == "token" and backbone != "test_vit":
        assert f"{backbone} has no class token" in " ".join(problems(backbone, pooling, pretrained=False))
        return
    model = embedder(backbone, dim=2, pooling=pooling)
    model.head = nn.Identity()
    z = model.forward_from(model.stages()[-1], hand_made(backbone))
    assert torch.allclose(z, F.normalize(torch.tensor([pooled], dtype=torch.float)))


def test_a_zero_embedding_has_a_finite_gradient():
    model = embedder()
    nn.init.zeros_(model.head.weight)
    z = model(images())
    z.sum().backward()
    assert torch.equal(z, torch.zeros(5, 8))
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_frozen_batchnorm_keeps_its_statistics_and_trains_its_affine_parameters():
    model, x = embedder(norm="frozen"), images()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    z = model.train()(x)
    z.sum().backward()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(z, model.eval()(x))
    assert model.backbone.bn1.weight.grad.abs().sum() > 0
    other = embedder(norm="train").train()
    other(x)
    assert other.backbone.bn1.num_batches_tracked == 1
    assert other.backbone.bn1.running_mean.abs().sum() > 0


def test_warm_up_trains_the_head_alone():
    model, x = embedder("test_vit"), images()
    model(x).sum().backward()
    model.freeze_backbone(True)
    assert all(p.grad is None for p in model.backbone.parameters())
    model(x).sum().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"head"}
    model.freeze_backbone(False)
    model(x).sum().backward()
    assert model.backbone.patch_embed.proj.weight.grad is not None


def test_initial_weights_come_from_their_generator_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = embedder(generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    same, other = embedder(generator=torch.Generator().manual_seed(3)), embedder(generator=4)
    assert first.weights_digest == same.weights_digest != other.weights_digest
    assert torch.equal(first.head.weight, same.head.weight)
    assert torch.equal(first(images()), same(images()))
    assert embedder(generator=4).weights_digest == other.weights_digest


def test_the_weights_name_their_own_configuration():
    model = embedder("resnet50.tv_in1k", dim=2)
    assert (model.tag, model.interpolation, model.input_px) == ("resnet50.tv_in1k", "bilinear", 224)
    assert (model.mean, model.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert model.width == 2048
    assert embedder("test_resnet").tag == "test_resnet.r160_in1k"
    assert anatomy("resnet50").tag == "resnet50.a1_in1k"


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_file_of_weights_fills_the_backbone(tmp_path, kind):
    source, path = embedder(generator=5), tmp_path / f"weights.{kind}"
    state = {**backbone_state(source), "fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}
    save_file(state, path) if kind == "safetensors" else torch.save({"state_dict": state}, path)
    model = embedder(generator=6, pretrained=str(path))
    loaded = model.backbone.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in source.backbone.state_dict().items())
    assert torch.equal(model.head.weight, embedder(generator=6).head.weight)
    assert model.weights_digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (model.weights, model.weights_read) == (path.name, "read from 'state_dict'" if kind == "pth" else None)
    assert model.normalisation["config"] == "test_resnet.r160_in1k"


class Code:
    def __reduce__(self):
        return (print, ("a pickle ran",))


def test_a_file_of_other_weights_is_rejected(tmp_path, capsys):
    good = embedder().backbone.state_dict()
    files = {
        "another.pth": embedder("test_byobnet").backbone.state_dict(),
        "deeper.pth": {**good, "layer4.1.conv1.weight": torch.zeros(1)},
        "partial.pth": {name: tensor for name, tensor in good.items() if not name.startswith("layer3")},
        "code.pth": {"state_dict": good, "optimizer": Code()},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match=f"{name} (does not fit test_resnet|is a pickle that would run code)"):
            embedder(pretrained=tmp_path / name)
    assert "a pickle ran" not in capsys.readouterr().out


def test_published_weights_come_from_the_cache_without_asking_the_hub(tmp_path, monkeypatch):
    source, path = embedder(generator=5), tmp_path / "model.safetensors"
    save_file({**backbone_state(source), "fc.weight": torch.zeros(1000, 96), "fc.bias": torch.zeros(1000)}, path)
    asked = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: asked.append(a) or str(path))
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda *a, **k: pytest.fail("asked the hub"))
    model = embedder(pretrained=True)
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert torch.equal(
        model.backbone.get_parameter("conv1.0.weight"), source.backbone.get_parameter("conv1.0.weight")
    )
    assert model.weights == "test_resnet.r160_in1k"
    assert model.weights_digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_unavailable_published_weights_give_one_clear_message(monkeypatch):
    def unreachable(*args, **settings):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub, "file_exists", unreachable)
    with pytest.raises(ModelError, match=r"test_resnet.r160_in1k are not on this machine .*not known.* or to false"):
        embedder(pretrained=True)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"backbone": "test_resnett"}, "no backbone named 'test_resnett'; did you mean 'test_resnet'"),
        (
            {"backbone": "hf-hub:timm/resnet50"},
            "'hf-hub:timm/resnet50' is not a timm name: see `metrix-bench list backbones`",
        ),
        ({"options": {"in_chans": 1}}, "the options of test_resnet cannot set in_chans: the embedder sets it"),
        ({"backbone": "resnet50.tv_in1kk"}, "no weights of resnet50 named 'tv_in1kk'; did you mean 'tv_in1k'"),
        ({"pooling": "gem"}, "pooling is 'gem'; choose one of avg, max, avg+max, token"),
        ({"norm": "batch"}, "norm is 'batch'; choose one of train, frozen"),
        ({"pretrained": "none.pth"}, "there is no weights file 'none.pth'"),
        ({"backbone": "test_mambaout", "pretrained": True}, "there are no published weights for test_mambaout"),
        ({"options": {"drop_paths": 0.1}}, "test_resnet has no option 'drop_paths'"),
        ({"options": {"num_classes": 3}}, "cannot set num_classes"),
        ({"backbone": "test_vit", "side_px": 40}, "test_vit does not accept images of 40 px"),
        ({"dim": 0}, "dim is 0"),
    ],
)
def test_wrong_choices_are_rejected_with_a_reason(wrong, words):
    with pytest.raises(ModelError) as error:
        embedder(**wrong)
    assert words in str(error.value)


def test_all_mistakes_are_reported_at_once():
    found = problems("test_vit", "sum", "off", "none.pth", "blocks.9", {}, side_px=32)
    assert len(found) == 4


def test_a_fixed_image_size_follows_the_images():
    for side_px in (32, 64):
        model = embedder("test_vit", side_px=side_px)
        assert model.forward_to("norm", images(2, side_px)).shape == (2, 1 + (side_px // 16) ** 2, 64)
    assert embedder("test_vit", side_px=None).side_px == 160


def test_share_counts_the_operations_after_a_stage():
    """Against a loop over the ResNet's convolutions: 2 · weights · positions each, and the head."""
    model, counts = embedder(dim=8, side_px=32).eval(), {}

    def count(name):
        def hook(module, inputs, output):
            counts[name] = 2 * module.weight.numel() * output.shape[2] * output.shape[3]

        return hook

    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count(name))
    model(images(1, 32))
    head = 2 * 96 * 8
    after = sum(n for name, n in counts.items() if name.startswith(("layer3", "layer4")))
    assert model.share("layer2", 32) == pytest.approx((after + head) / (sum(counts.values()) + head), rel=1e-12)
    assert model.share("layer4") == pytest.approx(head / (sum(counts.values()) + head), rel=1e-12)
    assert sorted(map(model.share, model.stages()), reverse=True) == list(map(model.share, model.stages()))


@pytest.mark.parametrize(
    ("side_px", "pooling", "same"), [(32, "avg+max", True), (64, "avg", True), (64, "max", False)]
)
def test_where_mixing_the_last_map_equals_mixing_embeddings_before_their_normalisation(side_px, pooling, same):
    model = embedder(side_px=side_px, pooling=pooling).eval()
    assert model.last_map_is_1x1() == (side_px == 32)
    assert model.mixes_like_embeddings() == same
    with torch.no_grad():
        maps = model.forward_to("layer4", images(2, side_px))
        of_maps = model.forward_from("layer4", 0.3 * maps[:1] + 0.7 * maps[1:])
        raw = model.head(model._pool(maps))
        of_embeddings = F.normalize(0.3 * raw[:1] + 0.7 * raw[1:])
    assert ((of_maps - of_embeddings).abs().max() < 1e-6) == same
