"""Detection and segmentation networks of torchvision: what is decided by values does not hinder the cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.core.torchvision_ops import declare_torchvision_operators

SETTINGS = {"weights": None, "weights_backbone": None, "num_classes": 5}
BOXES = {**SETTINGS, "min_size": 64, "max_size": 64}


def nms(boxes, scores, threshold):
    """Non-maximum suppression in Python."""
    from torchvision.ops import box_iou

    overlap, kept = box_iou(boxes, boxes), []
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for i in scores.argsort(descending=True).tolist():
        if not gone[i]:
            kept.append(i)
            gone |= overlap[i] > threshold
    return torch.tensor(kept, dtype=torch.long)


@pytest.fixture(scope="module")
def torchvision():
    declare_torchvision_operators()
    library = pytest.importorskip("torchvision", reason="torchvision is not installed")
    if library.extension._has_ops():
        yield library
        return
    patch, operators = pytest.MonkeyPatch(), torch.library.Library("torchvision", "IMPL")  # beside a CPU-only torch
    operators.impl("nms", nms, "CPU")
    patch.setattr(library.ops.boxes, "_assert_has_ops", lambda: None)
    yield library
    patch.undo()


def awake(net, everywhere=False):
    """Weights with which every layer has a say in the output."""
    torch.manual_seed(0)
    for module in (net if everywhere else net.backbone).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if everywhere else "linear")
    return net.eval()


def check(net, example, params=0.8):
    report = prunus.prune_(net, example, budget=prunus.Budget(params=params), allocator="uniform")
    assert report.in_place and 0 < report.verified.max_relative_error < 1e-7
    assert sum(p.numel() for p in net.parameters()) <= params * report.before["params"]
    return {fixed.what.partition(":")[0]: fixed.why for fixed in report.left_alone}


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_segmentation(torchvision, name):
    net = awake(getattr(torchvision.models.segmentation, name)(**SETTINGS))
    left_alone = check(net, torch.rand(1, 3, 64, 64))
    assert set(left_alone.values()) == {"it is an output of the model"}
    assert net(torch.rand(2, 3, 64, 64))["out"].shape == (2, 5, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_segmentation_with_an_auxiliary_head(torchvision, name):
    net = awake(getattr(torchvision.models.segmentation, name)(**SETTINGS, aux_loss=True))
    check(net, torch.rand(1, 3, 64, 64))
    assert set(net(torch.rand(2, 3, 64, 64))) == {"out", "aux"}


def test_ssdlite(torchvision):
    net = awake(torchvision.models.detection.ssdlite320_mobilenet_v3_large(**SETTINGS, detections_per_img=20), True)
    left_alone = check(net, ([torch.rand(3, 64, 64)],))
    assert [n for n in left_alone if not n.startswith("head.")] == []
    assert len(net([torch.rand(3, 64, 64), torch.rand(3, 80, 48)])) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_dense_detection(torchvision, name):
    options = {"score_thresh": 0.0, "topk_candidates": 50, "detections_per_img": 20}
    net = awake(getattr(torchvision.models.detection, name)(**BOXES, **options))
    assert all(name.startswith("head.") for name in check(net, ([torch.rand(3, 64, 64)],)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"])
def test_detection_in_two_stages(torchvision, name):
    few = {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 10}
    net = getattr(torchvision.models.detection, name)(**BOXES, **few, rpn_score_thresh=0.0, box_score_thresh=0.0)
    left_alone = check(awake(net), ([torch.rand(3, 64, 64)],))
    assert all(name.startswith(("backbone.fpn", "rpn.head", "roi_heads")) for name in left_alone)
    assert len(net([torch.rand(3, 64, 64), torch.rand(3, 80, 48)])) == 2
