"""The network of a training: what a stage trains, its losses, weight decay and learning rates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from converter.errors import UsageError
from faces.training.config import TrainConfig
from faces.training.network import (
    LAST_BLOCKS,
    build_network,
    learning_rate_factor,
    make_optimiser,
    set_stage,
    stage_of,
)
from faces.training.objectives import (
    ArcFaceClassifier,
    Batch,
    SeededDropout,
    SoftmaxClassifier,
    Triplets,
    class_means,
    make_objective,
)
from faces.training.triplets import select_semi_hard
from reference.losses import triplet_loss

TUNED = TrainConfig(data="crops")  # from published weights, BatchNorm frozen
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def batch(share: slice = slice(0, 7), processes: int = 1) -> Batch:
    return Batch(LABELS, share, processes, (1, 2))


def rows(seed: int = 0, count: int = 7) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 128), np.float32) * 4)


# Stages


def test_the_head_is_trained_first_then_the_last_blocks_then_everything():
    assert [stage_of(TUNED, epoch) for epoch in (0, 2, 3, 5, 6)] == ["head", "head", "last", "last", "all"]
    assert stage_of(replace(TUNED, weights="none"), 0) == "all"
    triplets = replace(TUNED, task="triplet")
    assert stage_of(triplets, 0) == stage_of(triplets, 7) == "last"
    assert stage_of(replace(triplets, trained_blocks="all"), 0) == "all"
    assert stage_of(replace(triplets, weights="none"), 0) == "all"


def test_a_classifier_that_the_loss_does_not_use_is_not_trained(network):
    """Several processes wait for the gradient of every parameter that is trained."""
    config = replace(TUNED, head="arcface")
    objective = make_objective(network, config)
    set_stage(objective, config, "all")
    objective(torch.randn(4, 3, 80, 80), Batch(LABELS[:4], slice(0, 4), 1, (0,))).loss.backward()
    trained = {
        name: parameter.grad for name, parameter in objective.named_parameters() if parameter.requires_grad
    }
    assert "network.logits.weight" not in trained
    assert all(gradient is not None for gradient in trained.values())


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("stage", ["head", "last", "all"])
def test_a_stage_trains_its_part_alone(network, stage, frozen):
    config = replace(TUNED, freeze_batch_norm=frozen)
    objective = make_objective(network, config)
    set_stage(objective, config, stage)
    starts = {"head": ("logits.",), "last": ("logits.", *LAST_BLOCKS), "all": ("",)}[stage]
    for name, parameter in network.named_parameters():
        is_norm = name.rpartition(".")[0].endswith("bn")
        learns = name.startswith(starts) and not (is_norm and (frozen or name.endswith("weight")))
        assert parameter.requires_grad == learns, name
    for name, module in network.named_modules():
        if name.endswith("bn"):
            assert module.training == (f"{name}.".startswith(starts) and not frozen), name
    assert network.dropout.training


def test_frozen_batch_norm_keeps_every_bit_and_one_that_is_trained_does_not(network):
    images = torch.randn(4, 3, 80, 80)
    for frozen in (True, False):
        config = replace(TUNED, freeze_batch_norm=frozen)
        objective = make_objective(network, config)
        set_stage(objective, config, "all")
        before = {key: value.clone() for key, value in network.state_dict().items() if ".bn." in key}
        small = Batch(LABELS[:4], slice(0, 4), 1, (0,))
        objective(images, small).loss.backward()
        make_optimiser(objective, replace(config, weight_decay=0.1, learning_rate=0.1)).step()
        after = network.state_dict()
        changed = {
            key.rpartition(".")[2] for key, value in before.items() if not torch.equal(value, after[key])
        }
        moved = {"running_mean", "running_var", "num_batches_tracked", "bias"}
        assert changed == (set() if frozen else moved)  # never the weight, which the checkpoints do not have


@pytest.mark.slow
def test_the_weights_at_the_start_are_those_of_the_file(single_files):
    config = replace(TUNED, weights=str(single_files / "weights.pt"), standardisation="fixed")
    network, standardisation, _ = build_network(config, 3, offline=True)
    loaded = torch.load(single_files / "weights.pt", weights_only=True)
    assert standardisation == "fixed"
    assert network.logits.weight.shape == (3, 512)
    for key, value in network.state_dict().items():
        if not key.startswith("logits.") and not key.endswith(("num_batches_tracked", "bn.weight")):
            assert torch.equal(value, loaded[key]), key
    assert build_network(replace(config, task="triplet"), 3, offline=True)[0].logits is None
    with pytest.raises(UsageError, match="have 512 numbers, not 128"):
        build_network(replace(config, embedding_size=128), 3, offline=True)


def test_random_weights_are_those_of_the_seed():
    config = TrainConfig(data="crops", weights="none", embedding_size=128)
    first, again = (build_network(config, 3, offline=True)[0] for _ in range(2))
    assert torch.equal(first.last_linear.weight, again.last_linear.weight)
    other = build_network(replace(config, seed=1), 3, offline=True)[0]
    assert not torch.equal(first.last_linear.weight, other.last_linear.weight)


# Optimisers and learning rates


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "tensorflow-adam"])
@pytest.mark.parametrize("head", ["softmax", "arcface"])
def test_kernels_alone_decay_and_the_head_has_a_learning_rate_of_its_own(network, optimiser, head):
    config = replace(TUNED, optimiser=optimiser, head=head, learning_rate=1e-3, head_learning_rate=1e-2)
    objective = make_objective(network, config)
    groups = make_optimiser(objective, config).param_groups
    facts = {p: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    heads = {"arcface.W"} if head == "arcface" else {"network.logits.weight", "network.logits.bias"}
    for name, parameter in objective.named_parameters():
        if name.endswith("bn.weight"):
            assert parameter not in facts
            continue
        kernel = name.endswith(("conv.weight", "conv2d.weight", "last_linear.weight", "logits.weight", ".W"))
        expected = (1e-2 if name in heads else 1e-3, 5e-4 if kernel else 0.0)
        assert facts[parameter] == expected, name


def test_the_learning_rates_follow_their_schedule():
    per_epoch = 4
    cosine = replace(TUNED, epochs=10, warmup_steps=8)
    factors = [learning_rate_factor(cosine, step, per_epoch) for step in range(40)]
    assert factors[:8] == [(step + 1) / 8 for step in range(8)]
    assert factors[8:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * n / 32) for n in range(32)])
    steps = replace(TUNED, schedule="step", step_epochs=2, step_factor=0.5)
    assert [learning_rate_factor(steps, step, per_epoch) for step in (0, 7, 8, 15, 16)] == [
        1,
        1,
        0.5,
        0.5,
        0.25,
    ]
    constant = replace(TUNED, schedule="constant", warmup_steps=2)
    assert [learning_rate_factor(constant, step, per_epoch) for step in range(4)] == [0.5, 1, 1, 1]


# Losses


def test_the_softmax_classifier_has_pytorchs_cross_entropy(network):
    config = replace(TUNED, label_smoothing=0.1)
    objective = SoftmaxClassifier(network, config)
    outcome = objective.compute(rows(), batch())
    logits = rows() @ network.logits.weight.T + network.logits.bias
    log = torch.log_softmax(logits, dim=1)
    target = F.one_hot(LABELS, 3) * 0.9 + 0.1 / 3
    assert outcome.loss.item() == pytest.approx(-(target * log).sum(dim=1).mean().item(), rel=1e-5)
    assert outcome.score == pytest.approx((logits.argmax(dim=1) == LABELS).float().mean().item())


def test_a_classifier_starts_as_the_nearest_mean(network):
    means = rows(1, 3)
    faces = means[LABELS] + rows(2) / 8
    found = class_means(faces, LABELS)
    probes = rows(3, 200)
    nearest = torch.cdist(probes, found).argmin(dim=1)
    objective = SoftmaxClassifier(network, TUNED)
    objective.start_at_means(faces, LABELS)
    assert (objective.logits(probes).argmax(dim=1) == nearest).all()
    objective.start_at_means(means, torch.arange(3))  # one face of each
    assert torch.isfinite(network.logits.weight).all()
    arcface = ArcFaceClassifier(network, replace(TUNED, head="arcface"))
    arcface.start_at_means(faces, LABELS)
    cosines = F.normalize(probes) @ F.normalize(class_means(F.normalize(faces), LABELS)).T
    assert (arcface.logits(probes).argmax(dim=1) == cosines.argmax(dim=1)).all()


def test_the_centre_loss_is_facenets(network):
    """`center_loss` of davidsandberg/facenet's facenet.py, read literally in NumPy."""
    config = replace(TUNED, head="centre", centre_factor=0.3, centre_rate=0.05)
    objective = SoftmaxClassifier(network, config)
    objective.centres.copy_(rows(5, 3))
    centres, features = objective.centres.numpy().copy(), rows().numpy()
    gathered = centres[LABELS.numpy()]
    expected = np.mean(np.square(features - gathered))
    for label, difference in zip(LABELS.numpy(), (1 - 0.95) * (gathered - features), strict=True):
        centres[label] -= difference
    plain = SoftmaxClassifier(network, TUNED).compute(rows(), batch()).loss
    outcome = objective.compute(rows(), batch())
    assert (outcome.loss - plain).item() == pytest.approx(0.3 * expected, rel=1e-5)
    assert np.allclose(objective.centres.numpy(), centres, atol=1e-6)


def test_arcface_adds_its_angle_to_that_of_the_own_person(network):
    config = replace(TUNED, head="arcface", arcface_margin=28.6, arcface_scale=16.0)
    objective = ArcFaceClassifier(network, config)
    weight = F.normalize(objective.arcface.W.detach(), dim=0)
    cosines = F.normalize(rows()) @ weight
    angles = torch.arccos(cosines)
    angles[torch.arange(7), LABELS] += math.radians(28.6)
    expected = F.cross_entropy(16 * torch.cos(angles), LABELS)
    assert objective.compute(rows(), batch()).loss.item() == pytest.approx(expected.item(), rel=1e-4)
    rounded = rows().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = objective.compute(rounded, batch()).loss
    assert mixed.item() == objective.compute(rounded.float(), batch()).loss.item()
    assert objective.arcface.W.dtype == torch.float32
    objective.norm.fill_(rows().norm(dim=1).mean().item())
    logits = objective.logits(rows()).detach()
    objective.write_logits()
    assert torch.allclose(network.logits(rows()), logits, atol=1e-4)
    assert (logits.argmax(dim=1) == cosines.argmax(dim=1)).all()


def test_the_shares_of_processes_add_up_to_the_whole_batch(network):
    """Loss, score, spread and the gradients of the embeddings: with three processes the same as with one."""
    shares = [slice(0, 3), slice(3, 5), slice(5, 7)]
    for config in (TUNED, replace(TUNED, task="triplet"), replace(TUNED, head="arcface")):
        objective = make_objective(network, config)
        gathered = network.head(rows()).detach() if config.task == "triplet" else rows()
        whole = rows().requires_grad_()
        expected = objective.compute(whole, batch())
        expected.loss.backward()
        objective.gather = lambda own, batch, gathered=gathered: gathered
        parts = [rows()[share].requires_grad_() for share in shares]
        outcomes = [
            objective.compute(part, batch(share, 3)) for part, share in zip(parts, shares, strict=True)
        ]
        for outcome in outcomes:
            outcome.loss.backward()
        for figure in ("value", "score", "spread"):
            added = sum(getattr(outcome, figure) for outcome in outcomes)
            assert added == pytest.approx(getattr(expected, figure), rel=1e-5)
        gradients = torch.cat([part.grad for part in parts])
        assert torch.allclose(gradients, whole.grad, atol=1e-7)
        assert whole.grad.abs().max() > 1e-4


def test_triplets_take_the_loss_of_the_selected_ones(network):
    objective = Triplets(network, replace(TUNED, task="triplet"))
    embeddings = network.head(rows())
    triplets, count = select_semi_hard(embeddings, LABELS, 0.2, np.random.default_rng((1, 2)))
    outcome = objective.compute(rows(), batch())
    assert outcome.loss.item() == pytest.approx(triplet_loss(embeddings, triplets, 0.2).item())
    assert objective.compute(rows().bfloat16(), batch()).loss.dtype == torch.float32  # of mixed precision
    assert outcome.score == len(triplets) / count
    assert count == 3 + 1 + 1


def test_triplets_have_no_dropout(network):
    images = torch.randn(4, 3, 80, 80)
    for task, same in (("triplet", True), ("classifier", False)):
        config = replace(TUNED, task=task)
        objective = make_objective(network, config)
        set_stage(objective, config, "last")
        network.dropout.batch = Batch(LABELS[:4], slice(0, 4), 1, (0,))
        trained = network.prelogits(images)
        assert torch.equal(trained, network.eval().prelogits(images)) == same


def test_a_row_of_dropout_depends_on_the_seed_and_its_place_alone():
    dropout = SeededDropout(0.6)
    features = torch.ones(7, 1792, 1, 1)
    dropout.batch = batch()
    whole = dropout(features)
    for share in (slice(0, 3), slice(3, 7)):
        dropout.batch = batch(share, 2)
        assert torch.equal(dropout(features[share]), whole[share])
    assert sorted(set(whole.flatten().tolist())) == pytest.approx([0, 2.5])
    assert (whole > 0).float().mean().item() == pytest.approx(0.4, abs=0.02)
    dropout.batch = Batch(LABELS, slice(0, 7), 1, (1, 3))
    assert not torch.equal(dropout(features), whole)
    assert torch.equal(dropout.eval()(features), features)
