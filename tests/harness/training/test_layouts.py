"""Published layouts of weights: written under their authors' names, each fills the network and gives its features."""

import re
from argparse import Namespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from harness.training import checkpoint
from harness.training.backbones import ModelError
from harness.training.embedder import Embedder

SIDE = 32
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
OPTIONS = {
    "vit_tiny_patch16_224": TINY,
    "vit_base_patch16_clip_224": TINY,
    "vit_small_patch14_dinov2": {**TINY, "patch_size": 16},
    "vit_small_patch14_reg4_dinov2": {**TINY, "patch_size": 16},
    "vit_small_patch16_dinov3": TINY,
    "vit_small_patch16_dinov3_qkvb": TINY,
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)},
    "convnext_atto": {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1)},
    "resnet18": {"channels": (8, 8, 16, 16)},
}


def random(network: Any) -> Any:
    """Fill all tensors of a network, among them those that timm starts at zero, with random numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)
                if name.endswith(("running_var", "norm.weight", "norm1.weight", "bn.weight")):
                    tensor.abs_().add_(0.5)
    return network.eval()


def network(name, num_classes=10):
    options: dict[str, Any] = dict(OPTIONS.get(name, {}))
    if re.match("vit|swin|resnet50_clip", name):
        options["img_size"] = SIDE
    return random(timm.create_model(name, num_classes=num_classes, **options))


def embedder(name, path):
    return Embedder(name, dim=4, side_px=SIDE, generator=0, pretrained=path, options=OPTIONS.get(name, {})).eval()


def renamed(state, rules):
    """Return copies of tensors under other names; rules are patterns and what replaces them, one after another."""
    names = {name: name for name in state}
    for pattern, replacement in rules:
        names = {name: re.sub(pattern, replacement, new) for name, new in names.items()}
    return {new: state[name].clone() for name, new in names.items()}


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def another(state):
    return {name: tensor + 1 for name, tensor in state.items()}


def assert_fills(name, content, source, tmp_path, read):
    """Save content, load it, and compare tensors and features with the source, and what was unwrapped with `read`."""
    path = tmp_path / "w.pth"
    torch.save(content, path)
    model = embedder(name, path)
    assert model.weights_read == read
    expected = source.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.backbone.state_dict().items())
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        features = model.backbone.double().forward_features(images)
        torch.testing.assert_close(features, source.double().forward_features(images))


def chunked(state):
    """DINOv2 trains blocks in chunks, whose second number counts through all of them."""
    return renamed(state, [(r"^blocks\.(\d+)\.", r"blocks.0.\1.")])


TEXT = {
    "positional_embedding": torch.zeros(77, 8),
    "text_projection": torch.zeros(8, 8),
    "logit_scale": torch.zeros(()),
    "transformer.resblocks.0.ln_1.weight": torch.zeros(8),
    "token_embedding.weight": torch.zeros(9, 8),
}
LEFT_OUT = "5 other tensors left out (positional_embedding, text_projection, logit_scale and 2 more)"
CLIP_VIT = [
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^", "visual."),
]
CLIP_RESNET = [
    (r"^stem\.conv(\d)\.conv\.", r"conv\1."),
    (r"^stem\.conv(\d)\.bn\.", r"bn\1."),
    (r"^stages\.0\.", "layer1."),
    (r"^stages\.1\.", "layer2."),
    (r"^stages\.2\.", "layer3."),
    (r"^stages\.3\.", "layer4."),
    (r"\.conv(\d)_\dx\d\.conv\.|\.conv(\d)_kxk\.conv\.", r".conv\1\2."),
    (r"\.conv(\d)_\dx\d\.bn\.|\.conv(\d)_kxk\.bn\.", r".bn\1\2."),
    (r"\.shortcut\.conv\.conv\.", ".downsample.0."),
    (r"\.shortcut\.conv\.bn\.", ".downsample.1."),
    (r"^head\.pos_embed$", "attnpool.positional_embedding"),
    (r"^head\.([qkv])\.", r"attnpool.\1_proj."),
    (r"^head\.proj\.", "attnpool.c_proj."),
    (r"^", "visual."),
]


def tower(state):
    state = renamed(state, CLIP_VIT)
    state["visual.class_embedding"] = state["visual.class_embedding"][0, 0]
    state["visual.positional_embedding"] = state["visual.positional_embedding"][0]
    return state


def clip_vit(source):
    state = tower(source.state_dict())
    state["visual.proj"] = state.pop("visual.head.weight").T
    del state["visual.head.bias"]
    return {**TEXT, **state}


def dinov2(source):
    return {**renamed(source.state_dict(), []), "mask_token": torch.zeros(1, 32)}


def dinov2_with_registers(source):
    """Their class token has a position; timm adds it to the token."""
    state = dinov2(source)
    first = torch.zeros(1, 1, 32)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    return state


def dinov3(source):
    rules = [(r"^reg_token$", "storage_tokens"), (r"\.gamma_(\d)$", r".ls\1.gamma")]
    state = renamed(source.state_dict(), rules)
    state |= {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}
    for n in range(2):
        zeros = torch.zeros(32)
        q, v = (state.pop(f"blocks.{n}.attn.{which}_bias", zeros) for which in "qv")
        state[f"blocks.{n}.attn.qkv.bias"] = torch.cat([q, zeros, v])
        state[f"blocks.{n}.attn.qkv.bias_mask"] = torch.ones(96)
    return state


def swin(source):
    """Microsoft's stages end in their downsampling, timm's begin with it."""
    rules = [(r"^layers\.1\.downsample", "layers.0.downsample"), (r"^head\.fc\.", "head.")]
    state = renamed(source.state_dict(), rules)
    return {"model": {**state, "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}}


def convnext(source):
    rules = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc(\d)", r"pwconv\1"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]
    state = renamed(source.state_dict(), rules)
    return {"model": {n: t[:, :, 0, 0] if "pwconv" in n and t.dim() == 4 else t for n, t in state.items()}}


BY_TIMM = "names of other authors converted"
PUBLISHED = {
    "CLIP": ("vit_base_patch16_clip_224", clip_vit, f"{BY_TIMM}, {LEFT_OUT}"),
    "CLIP in training": (
        "vit_base_patch16_clip_224",
        lambda source: {"epoch": 1, "state_dict": under("module.", clip_vit(source))},
        f"read from 'state_dict', prefix 'module.' stripped, {BY_TIMM}, 5 other tensors left out "
        "(module.positional_embedding, module.text_projection, module.logit_scale and 2 more)",
    ),
    "CLIP around timm": (
        "vit_base_patch16_clip_224",
        lambda source: {**TEXT, **under("visual.trunk.", source.state_dict())},
        f"prefix 'visual.trunk.' stripped, {LEFT_OUT}",
    ),
    "CLIP ResNet": (
        "resnet50_clip",
        lambda source: {**TEXT, **renamed(source.state_dict(), CLIP_RESNET)},
        f"{BY_TIMM}, {LEFT_OUT}",
    ),
    "DINOv2": ("vit_small_patch14_dinov2", dinov2, None),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", dinov2_with_registers, BY_TIMM),
    "DINOv2 in training": (
        "vit_small_patch14_reg4_dinov2",
        lambda source: {"teacher": under("backbone.", chunked(dinov2_with_registers(source)))},
        "read from 'teacher', prefix 'backbone.' stripped, names of blocks in chunks converted",
    ),
    "DINOv3": ("vit_small_patch16_dinov3", dinov3, BY_TIMM),
    "DINOv3 with biases": ("vit_small_patch16_dinov3_qkvb", dinov3, BY_TIMM),
    "Swin": ("swin_tiny_patch4_window7_224", swin, f"read from 'model', {BY_TIMM}"),
    "ConvNeXt": ("convnext_atto", convnext, f"read from 'model', {BY_TIMM}"),
    "a compiled block": (
        "vit_tiny_patch16_224",
        lambda source: renamed(source.state_dict(), [(r"^blocks\.1\.", "blocks.1._orig_mod.")]),
        "names of compiled blocks converted",
    ),
}


@pytest.mark.parametrize("published", PUBLISHED)
def test_a_published_layout_gives_the_features_of_its_network(tmp_path, capsys, published):
    name, write, read = PUBLISHED[published]
    source = network(name)
    assert_fills(name, write(source), source, tmp_path, read)
    assert not capsys.readouterr().out


def test_pooling_by_attention_is_left_out_where_the_network_has_none(tmp_path):
    """The published file is that of the network with attention."""
    source = network("resnet50_clip")
    plain = network("resnet50_clip_gap", num_classes=0)
    plain.load_state_dict({name: tensor for name, tensor in source.state_dict().items() if name[:5] != "head."})
    content = {**TEXT, **renamed(source.state_dict(), CLIP_RESNET)}
    assert_fills("resnet50_clip_gap", content, plain, tmp_path, f"{BY_TIMM}, {LEFT_OUT}")


def test_class_tokens_of_dinov2_are_those_of_its_position(tmp_path):
    source = network("vit_small_patch14_reg4_dinov2")
    content = dinov2_with_registers(source)
    content["pos_embed"][:, 0] = 2.0
    with torch.no_grad():
        source.cls_token.add_(2.0)
    assert_fills("vit_small_patch14_reg4_dinov2", content, source, tmp_path, BY_TIMM)


def test_vit_of_torchvision_gives_its_features(tmp_path):
    theirs = random(torchvision.models.VisionTransformer(SIDE, 16, 2, 2, 32, 128, num_classes=10))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = embedder("vit_tiny_patch16_224", tmp_path / "w.pth")
    assert model.weights_read == "names of torchvision's ViT converted"
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        patches = theirs._process_input(images)
        expected = theirs.get_submodule("encoder")(torch.cat([theirs.class_token.expand(2, -1, -1), patches], dim=1))
        torch.testing.assert_close(model.backbone.forward_features(images), expected)


def own_run(state):
    return under("backbone.", state) | {"head.weight": torch.zeros(4, 16), "head.bias": torch.zeros(4)}


def moco(state, head):
    return {**{name: tensor for name, tensor in state.items() if name[:3] != "fc."}, head: torch.zeros(3)}


WRAPPED = {
    "timm in training": (
        lambda s: {"arch": "resnet18", "args": Namespace(lr=1), "state_dict": another(s), "state_dict_ema": s},
        "read from 'state_dict_ema', preferred to 'state_dict'",
    ),
    "torchvision in training": (
        lambda s: {"model": another(s), "model_ema": {"n_averaged": torch.tensor(3), **under("module.", s)}},
        "read from 'model_ema', prefix 'module.' stripped, preferred to 'model', 1 other tensor left out "
        "(n_averaged)",
    ),
    "DINO": (
        lambda s: {
            "student": under("module.backbone.", another(s)) | {"module.head.mlp.0.bias": torch.zeros(3)},
            "teacher": under("backbone.", s) | {"head.mlp.0.bias": torch.zeros(3)},
            "dino_loss": {"center": torch.zeros(1, 3)},
        },
        "read from 'teacher', prefix 'backbone.' stripped, preferred to 'student.module.backbone.', 3 other tensors "
        "left out (student.module.head.mlp.0.bias, head.mlp.0.bias, dino_loss.center)",
    ),
    "MoCo v2": (
        lambda s: {
            "state_dict": under("module.encoder_q.", moco(s, "fc.0.weight"))
            | under("module.encoder_k.", moco(another(s), "fc.0.weight"))
            | {"module.queue": torch.zeros(2, 3)}
        },
        "read from 'state_dict', prefix 'module.encoder_q.' stripped, preferred to 'state_dict.module.encoder_k.', 2 "
        "other tensors left out (module.queue, module.encoder_q.fc.0.weight)",
    ),
    "MoCo v3": (
        lambda s: {
            "state_dict": under("module.momentum_encoder.", moco(another(s), "fc.0.weight"))
            | under("module.base_encoder.", moco(s, "fc.0.weight"))
            | {"module.predictor.0.weight": torch.zeros(3)}
        },
        "read from 'state_dict', prefix 'module.base_encoder.' stripped, preferred to "
        "'state_dict.module.momentum_encoder.', 2 other tensors left out (module.predictor.0.weight, "
        "module.base_encoder.fc.0.weight)",
    ),
    "SwAV": (
        lambda s: under("module.", moco(s, "projection_head.0.weight") | {"prototypes.weight": torch.zeros(3)}),
        "prefix 'module.' stripped, 2 other tensors left out (module.projection_head.0.weight, "
        "module.prototypes.weight)",
    ),
    "Barlow Twins": (
        lambda s: {"model": under("module.backbone.", s) | {"module.projector.0.weight": torch.zeros(3)}},
        "read from 'model', prefix 'module.backbone.' stripped, 1 other tensor left out (module.projector.0.weight)",
    ),
    "mmpretrain": (
        lambda s: {"meta": {"epoch": 1}, "state_dict": under("backbone.", s) | {"head.fc.weight": torch.zeros(3)}},
        "read from 'state_dict', prefix 'backbone.' stripped, 1 other tensor left out (head.fc.weight)",
    ),
    "Lightning": (
        lambda s: {"state_dict": under("net._orig_mod.", s), "hyper_parameters": {"lr": 1}},
        "read from 'state_dict', prefix 'net._orig_mod.' stripped",
    ),
    "half precision": (lambda s: {name: tensor.bfloat16() for name, tensor in s.items()}, None),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_network_is_found_in_published_wrappers(tmp_path, kind):
    wrap, read = WRAPPED[kind]
    source = network("resnet18")
    if kind == "half precision":
        source.load_state_dict({name: tensor.bfloat16() for name, tensor in source.state_dict().items()})
    assert_fills("resnet18", wrap(source.state_dict()), source, tmp_path, read)


def test_resnet_of_torchvision_has_the_names_of_timm(tmp_path):
    theirs = random(torchvision.models.resnet18(num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = Embedder("resnet18", dim=4, side_px=SIDE, pretrained=tmp_path / "w.pth").eval()
    images = torch.randn(2, 3, SIDE, SIDE)
    parts = [theirs.conv1, theirs.bn1, theirs.relu, theirs.maxpool]
    expected = torch.nn.Sequential(*parts, theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone.forward_features(images), expected(images))


@pytest.mark.parametrize("file", ["best", "last", "exported"])
def test_networks_of_this_program_are_trained_further(tmp_path, file):
    """The new network has its own head; proxies and the state of the optimiser stay behind."""
    source = Embedder("test_resnet", dim=4, side_px=SIDE, pretrained=False, generator=3)
    proxies = torch.nn.Parameter(torch.ones(5, 4))
    optimizer = torch.optim.AdamW([*source.parameters(), proxies])
    (source(torch.randn(2, 3, SIDE, SIDE)).sum() + proxies.sum()).backward()
    optimizer.step()
    path = tmp_path / f"{file}.safetensors"
    if file == "exported":
        save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, path)
    else:
        learned = {"model": source.state_dict(), "criterion": {"proxies": proxies}}
        checkpoint.save(
            path, learned | ({"optimizer": optimizer.state_dict()} if file == "last" else {}), {"epoch": 1}
        )
    model = Embedder("test_resnet", dim=4, side_px=SIDE, pretrained=path, generator=0)
    assert model.weights_read == (
        "prefix 'backbone.' stripped, 2 other tensors left out (head.bias, head.weight)"
        if file == "exported"
        else "read from 'model', prefix 'backbone.' stripped, 3 other tensors left out (head.weight, head.bias, "
        "criterion.proxies)"
    )
    loaded = model.backbone.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in source.backbone.state_dict().items())
    assert not torch.equal(model.head.state_dict()["weight"], source.head.state_dict()["weight"])


def test_a_damaged_checkpoint_of_this_program_is_refused(tmp_path):
    source = Embedder("test_resnet", dim=4, side_px=SIDE, pretrained=False, generator=3)
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, {"model": source.state_dict()}, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="its checksum does not match"):
        embedder("test_resnet", path)


REFUSED = {
    "its names are those of Hugging Face transformers (encoder.layer.0.attention.attention.query.weight), which are "
    "not converted for this network; take timm's weights of it": lambda state: {
        "embeddings.position_embeddings": torch.zeros(1),
        "encoder.layer.0.attention.attention.query.weight": torch.zeros(1),
    },
    "30 of the 31 tensors of this network are in it, 1 are missing (norm.weight)": lambda state: {
        "state_dict": tower({name: tensor for name, tensor in state.items() if name != "norm.weight"})
    },
    "30 of the 31 tensors of this network are in it, 1 have another shape (norm.bias (3,) instead of (32,))": (
        lambda state: tower({**state, "norm.bias": torch.zeros(3)})
    ),
    "contains this network 2 times, under 'a' and 'b': save the one you want in a file": lambda state: {
        "b": state,
        "a": state,
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_named(tmp_path, message):
    state = network("vit_base_patch16_clip_224", num_classes=0).state_dict()
    torch.save(REFUSED[message](state), tmp_path / "w.pth")
    with pytest.raises(ModelError) as error:
        embedder("vit_base_patch16_clip_224", tmp_path / "w.pth")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        ("swin_t", "swin_tiny_patch4_window7_224"),
        ("convnext_tiny", "convnext_atto"),
        ("efficientnet_b0", "efficientnet_b0"),
    ],
)
def test_networks_that_timm_does_not_convert_from_torchvision_are_named(tmp_path, theirs, name):
    with torch.device("meta"):
        names = torchvision.models.get_model(theirs).state_dict()
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="its names are those of torchvision"):
        embedder(name, tmp_path / "w.pth")
