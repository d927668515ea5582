"""What every recipe's debug() must hold: losses, gradients, learning, artifact, independence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from content_cases import CUTOFF, NUM_LABELS, exact, read_rows
from torch import nn

from rec.artifacts import read_manifest
from rec.batch import ContentBatch
from rec.config import ConfigError
from rec.models.content.encoder import KIND, load_encoder
from rec.nn.fusion import FusionKind
from rec.recipes.content import ContentRecipe, debug
from rec.train.engine import PlainEngine
from rec.train.gradient import Sums, backpropagate

FUSIONS: list[FusionKind] = ["multi_scale", "top_layer", "early", "late", "hybrid"]
RECIPES = {
    kind: debug().model_copy(update={"model": debug().model.model_copy(update={"fusion": kind})})
    for kind in FUSIONS
}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> ContentRecipe:
    return RECIPES[request.param]


@pytest.fixture
def raw(recipe: ContentRecipe, content_rows: str) -> ContentBatch:
    return recipe.collate(read_rows(content_rows))


def ready(recipe: ContentRecipe, raw: ContentBatch, seed: int = 0) -> ContentBatch:
    return recipe.transform(raw, torch.Generator().manual_seed(seed))


def engine(recipe: ContentRecipe, rows: str) -> PlainEngine:
    torch.manual_seed(recipe.train.seed)
    return PlainEngine(recipe, recipe.build(rows), torch.device("cpu"))


def test_config_round_trip(recipe: ContentRecipe):
    assert ContentRecipe.from_json(recipe.to_json()) == recipe
    changed = recipe.override(["masking.kind=uniform", "weights.infonce=0", "train.steps=7"])
    assert (changed.masking.kind, changed.weights["infonce"], changed.train.steps) == (
        "uniform",
        0,
        7,
    )


def test_losses_are_finite_named_as_the_weights_and_reach_every_parameter(
    recipe: ContentRecipe, raw: ContentBatch, content_rows: str
):
    model = recipe.build(content_rows)
    losses = model(ready(recipe, raw))
    assert losses.keys() == recipe.weights.keys()
    assert all(
        t.total.isfinite() and t.count > 0 and not t.count.requires_grad for t in losses.values()
    )
    torch.stack([term.total for term in losses.values()]).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    trained = [p for p in model.parameters() if p.requires_grad]
    moved = sum(bool((p.grad != 0).any()) for p in trained if p.grad is not None)
    assert moved > 0.95 * len(trained)  # stand-ins of what no row lacks may rest at zero


@pytest.mark.parametrize(
    "missing", ["frame_mask", "token_mask", "audio_mask", "label_weights", "all"]
)
def test_every_parameter_gets_a_gradient_when_the_whole_batch_lacks_something(
    recipe: ContentRecipe, raw: ContentBatch, content_rows: str, missing: str
):
    names = ["frame_mask", "token_mask", "audio_mask", "label_weights"]
    zeroed = {n: torch.zeros_like(getattr(raw, n)) for n in names if missing in (n, "all")}
    if "token_mask" in zeroed:
        zeroed["term_scores"] = torch.full_like(raw.term_scores, -torch.inf)
    model = recipe.build(content_rows)
    losses = model(ready(recipe, replace(raw, **zeroed)))
    torch.stack([term.total for term in losses.values()]).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_groups_hold_every_trained_parameter_once(recipe: ContentRecipe, content_rows: str):
    model = recipe.build(content_rows)
    groups = recipe.parameter_groups(model)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.Embedding)):
            assert all(id(p) in free for p in module.parameters())
        if isinstance(module, nn.Linear) and module.weight.requires_grad:
            assert id(module.weight) not in free


def test_overfits_one_batch(recipe: ContentRecipe, raw: ContentBatch, content_rows: str):
    used = engine(recipe, content_rows)
    batch = ready(recipe, raw)
    history: list[Sums] = []
    for step in range(120):
        used.module.train()
        history.append(backpropagate(used, recipe.weights, batch, 1, step))
        used.step(1.0)
    first, last = history[0].means(), history[-1].means()
    # each to a third: the labels' loss has a floor, as some rows have fractional weights
    assert all(last[name] < first[name] / 3 for name in recipe.weights), (first, last)


def test_artifact_gives_the_same_vectors_and_labels(
    recipe: ContentRecipe, raw: ContentBatch, content_rows: str, tmp_path: Path
):
    model = recipe.build(content_rows)
    recipe.export(model, content_rows, str(tmp_path / "encoder"), {"loss": 1.0})
    encoder = load_encoder(tmp_path / "encoder")
    with torch.no_grad():
        expected = model.eval().encode_item(raw)
    torch.testing.assert_close(torch.from_numpy(encoder.encode(raw)), expected)
    assert encoder.dim == expected.shape[1]
    assert encoder.labels == [f"tag{i}" for i in range(NUM_LABELS)]
    manifest = read_manifest(tmp_path / "encoder", KIND)
    assert manifest.version == encoder.version
    assert manifest.lineage == {"content-rows": read_manifest(content_rows, "content-rows").version}
    assert manifest.metrics == {"loss": 1.0, "cutoff": CUTOFF}


def test_vectors_are_unit_and_do_not_depend_on_neighbours_or_padding(
    recipe: ContentRecipe, raw: ContentBatch, content_rows: str
):
    model, table = recipe.build(content_rows).eval(), read_rows(content_rows)
    noisy = replace(
        raw,
        token_ids=raw.token_ids.masked_fill(~raw.token_mask, 9),
        frames=raw.frames.masked_fill(~raw.frame_mask[:, :, None, None, None], 200),
        log_mel=raw.log_mel.masked_fill(~raw.audio_mask[:, :, None, None], 3.0),
    )
    one_by_one = [recipe.collate(table.slice(i, 1)) for i in range(table.num_rows)]
    assert min(one.token_ids.shape[1] for one in one_by_one) < raw.token_ids.shape[1]
    with torch.no_grad():
        together = model.encode_item(raw)
        alone = torch.cat([model.encode_item(one) for one in one_by_one])
        with_noise = model.encode_item(noisy)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(raw)))
    torch.testing.assert_close(alone, together, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(with_noise, together, atol=2e-6, rtol=1e-4)


def test_running_twice_gives_equal_losses(
    recipe: ContentRecipe, raw: ContentBatch, content_rows: str
):
    def run() -> list[float]:
        used = engine(recipe, content_rows)
        totals = []
        for step in range(3):
            sums = backpropagate(used, recipe.weights, ready(recipe, raw, step), 2, step)
            used.step(1.0)
            totals.append(sums.means()["total"])
        return totals

    assert run() == run()


def test_a_wrong_mask_token_is_refused_with_the_override(content_rows: str):
    with pytest.raises(ConfigError, match=r"set masking\.mask_token_id=4"):
        exact().override(["masking.mask_token_id=103"]).build(content_rows)
