"""Parts of behaviour models against plain loops: targets, masks, samples, items' vectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sequence_cases import gradients

from rec.batch import SequenceBatch
from rec.models.matching.dssm import DSSM, DSSMConfig, choose_targets
from rec.models.sequence.bert4rec import HIDDEN, BERT4Rec, mask_events
from rec.nn.items import Bags, ItemColumns, ItemConfig, ItemVectors
from rec.nn.losses.items import ItemLoss, ItemLossConfig, Sampler
from rec.nn.next_event import next_events
from rec.nn.users import MaskedConfig, PooledConfig
from rec.recipes import matching
from rec.recipes.matching import DSSMRecipe

# of each user: events, and which of them are to be predicted
USERS = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


def batch_of(users: list[list[tuple[int, bool]]]) -> SequenceBatch:
    flat = [event for user in users for event in user]
    items = torch.tensor([item for item, _ in flat])
    return SequenceBatch(
        lengths=torch.tensor([len(user) for user in users]),
        item_index=items,
        weights=torch.ones(len(flat)),
        times=torch.arange(len(flat)),
        target_mask=torch.tensor([wanted for _, wanted in flat]),
    )


def training(lengths: list[int]) -> SequenceBatch:
    batch = batch_of([[(i, False) for i in range(length)] for length in lengths])
    return batch.mark(torch.ones(len(lengths), dtype=torch.long))


@given(users=USERS)
def test_next_events_pair_each_target_with_the_event_before(users: list[list[tuple[int, bool]]]):
    events = next_events(batch_of(users))
    pairs = [
        ((b, i - 1), user[i][0])
        for b, user in enumerate(users)
        for i in range(1, len(user))
        if user[i][1]
    ]
    first = [user[0][0] for user in users if user[0][1]]
    read = [(b, i) for b, user in enumerate(users) for i in range(len(user) - 1)]
    assert events.lengths.tolist() == [len(user) - 1 for user in users]
    assert events.item_index.tolist() == [users[b][i][0] for b, i in read]
    assert events.targets.tolist() == [item for _, item in pairs] + first
    numbered = torch.arange(1.0, len(read) + 1)[:, None]
    expected = [read.index(place) + 1.0 for place, _ in pairs] + [0.0] * len(first)
    assert events.states(numbered).squeeze(1).tolist() == expected


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_masking_hides_something_of_every_history(lengths: list[int], seed: int):
    batch, generator = training(lengths), torch.Generator()
    masked = mask_events(batch, generator.manual_seed(seed), share=0.3, last=0.2)
    assert masked.input_index is not None
    hidden = masked.input_index == HIDDEN
    assert torch.equal(hidden, masked.target_mask)
    assert torch.equal(masked.item_index, batch.item_index)
    assert torch.equal(masked.input_index[~hidden], batch.item_index[~hidden])
    assert all(part.any() for part in hidden.split(lengths))
    again = mask_events(batch, generator.manual_seed(seed), share=0.3, last=0.2)
    assert torch.equal(again.target_mask, masked.target_mask)


def test_masking_keeps_its_shares():
    batch = training([20] * 3000)
    generator = torch.Generator().manual_seed(0)
    hidden = mask_events(batch, generator, share=0.3, last=0.1).target_mask.view(3000, 20)
    alone = hidden[:, -1] & (hidden.sum(1) == 1)
    assert abs(alone.float().mean() - 0.1) < 0.02
    assert abs(hidden[~alone].float().mean() - 0.3) < 0.01


def test_masking_hides_what_a_held_out_row_holds_out():
    users = [[(1, False), (2, False), (3, True)], [(4, True)], [(5, False), (6, True), (7, True)]]
    batch = batch_of(users)
    masked = mask_events(batch, torch.Generator(), share=0.9, last=0.9)
    assert torch.equal(masked.target_mask, batch.target_mask)


@settings(max_examples=30)
@given(users=USERS, count=st.integers(1, 4), seed=st.integers(0, 99))
def test_chosen_targets_are_so_many_of_each_user(
    users: list[list[tuple[int, bool]]], count: int, seed: int
):
    batch = batch_of(users)
    chosen = choose_targets(batch, torch.Generator().manual_seed(seed), count)
    assert not (chosen.target_mask & ~batch.target_mask).any()
    sizes = batch.lengths.tolist()
    parts = zip(chosen.target_mask.split(sizes), batch.target_mask.split(sizes), strict=True)
    assert all(int(mine.sum()) == min(int(all_.sum()), count) for mine, all_ in parts)


def test_chosen_targets_are_drawn_evenly():
    batch, found = training([5] * 2000), torch.zeros(5)
    chosen = choose_targets(batch, torch.Generator().manual_seed(0), 2)
    found = chosen.target_mask.view(2000, 5).float().mean(0)
    assert found[0] == 0
    assert (found[1:] - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_sampler_draws_by_its_shares_and_nothing_without_events(power: float):
    events = torch.tensor([0, 9, 1, 0, 4, 0])
    sampler = Sampler(events, power)
    expected = torch.where(events > 0, events.float() ** power, 0)
    share = sampler.share(torch.arange(6))
    torch.testing.assert_close(share, expected / expected.sum())
    torch.manual_seed(0)
    sample = sampler(20_000)
    counts = torch.bincount(sample, minlength=6) / 20_000
    assert (counts - share).abs().max() < 0.02
    assert not counts[events == 0].any()
    torch.manual_seed(0)
    assert torch.equal(sampler.bfloat16()(20_000), sample), "as DeepSpeed casts its modules"


def columns(num_events: list[int]) -> ItemColumns:
    count = len(num_events)
    lengths = torch.tensor([i % 3 for i in range(count)])
    total = int(lengths.sum())
    return ItemColumns(
        num_events=torch.tensor(num_events),
        tags=Bags(lengths, torch.arange(total) % 4, 4),
        categories=Bags(torch.ones_like(lengths), torch.arange(count) % 2, 2),
        uploader=torch.tensor([-1 if i % 2 else i % 3 for i in range(count)]),
        num_uploaders=3,
        content=torch.randn(count, 5, generator=torch.Generator().manual_seed(0)),
    )


@settings(max_examples=20)
@given(index=st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_items_vectors_are_sums_of_what_is_known(index: list[int]):
    known = columns([3, 0, 2, 1, 0, 5, 1])
    config = ItemConfig(features=("id", "tags", "categories", "uploader", "content"))
    torch.manual_seed(0)
    module = ItemVectors(known, 4, config).eval()
    tags, categories = module.get_submodule("tags"), module.get_submodule("categories")
    starts = known.tags.lengths.cumsum(0) - known.tags.lengths
    assert known.content is not None
    for item, vector in zip(index, module(torch.tensor(index)), strict=True):
        expected = module.content(known.content[item]) + categories.weight[item % 2]
        if known.num_events[item] > 0:
            expected = expected + module.id.weight[item]
        labels = known.tags.index[starts[item] : starts[item] + known.tags.lengths[item]]
        if len(labels):
            expected = expected + tags.weight[labels].mean(0)
        if known.uploader[item] >= 0:
            expected = expected + module.uploader.weight[known.uploader[item]]
        torch.testing.assert_close(vector, expected)
    torch.testing.assert_close(module(), module(torch.arange(7)))


def test_ids_are_hidden_by_chance_in_training_alone():
    known = columns([1] * 500)
    module = ItemVectors(known, 4, ItemConfig(features=("id", "uploader"), id_dropout=0.3))
    torch.nn.init.zeros_(module.uploader.weight)
    torch.manual_seed(0)
    assert abs((~module().any(dim=1)).float().mean() - 0.3) < 0.07
    assert module.eval()().any(dim=1).all()
    alone = ItemVectors(known, 4, ItemConfig(id_dropout=0.3))
    assert alone() is alone.id.weight, "without other features nothing could stand in"


def test_only_items_with_events_compete():
    events = torch.tensor([0, 2, 1, 0])
    vectors = torch.randn(4, 3, requires_grad=True)
    states = torch.randn(2, 3)
    targets = torch.tensor([1, 3])  # the second has no event: a held-out target
    for kind in ("softmax", "sampled_softmax"):
        loss = ItemLoss(events, ItemLossConfig(kind=kind, num_negatives=50))
        every = replace(loss.needed(torch.arange(4)))
        term = loss(
            states, targets, vectors if every.index is None else vectors[every.index], every
        )
        (gradient,) = torch.autograd.grad(term.total, vectors)
        assert not gradient[0].any()
        assert gradient[[1, 2, 3]].any(dim=1).all()
    exact = torch.zeros(())
    for state, others, target in ((states[0], [1, 2], 1), (states[1], [1, 2, 3], 3)):
        exact = exact - (state @ vectors[others].T).log_softmax(0)[others.index(target)]
    loss = ItemLoss(events, ItemLossConfig())
    term = loss(states, targets, vectors, loss.needed(targets))
    torch.testing.assert_close(term.total, exact)


def test_a_batch_without_masks_is_refused():
    model = BERT4Rec(columns([1, 1, 1]), MaskedConfig(dim=4), ItemConfig(), ItemLossConfig())
    with pytest.raises(ValueError, match="mask_events"):
        model(training([3]))


def test_two_towers_equal_the_loop():
    """In-batch and sampled negatives, each corrected, accidental hits left out."""
    torch.manual_seed(0)
    config = DSSMConfig(
        user=PooledConfig(dim=4, hidden_dim=8, dropout=0.0), item_hidden_dim=8, num_negatives=5
    )
    events = [5, 3, 0, 1, 2]
    model = DSSM(columns(events), config, ItemConfig())
    batch = batch_of([[(0, False), (1, True), (3, True)], [(4, False), (1, True), (2, True)]])
    torch.manual_seed(3)
    term = model(batch)["next_item"]
    torch.manual_seed(3)
    sample = model.sampler(5).tolist()
    users, items = [], model.item_vectors()
    for history in ([0], [0, 1], [4], [4, 1]):
        part = batch_of([[(item, False) for item in history]])
        users.append(model.encode_user(part).vectors[0, 0])
    targets = [1, 3, 1, 2]
    in_batch = torch.tensor(events).clamp(min=1) / 12
    sampled = (torch.tensor(events) > 0) / 4
    expected = torch.zeros(())
    for user, target in zip(users, targets, strict=True):
        own = (user @ items[target] / config.temperature).exp()
        below = own
        for item in [*targets, *sample]:
            if item != target:
                often = 4 * in_batch[item] + 5 * sampled[item]
                below = below + (user @ items[item] / config.temperature).exp() / often
        expected = expected - (own / below).log()
    torch.testing.assert_close(term.total, expected)
    assert term.count == 4


def exact(**train: object) -> DSSMRecipe:
    """debug() without what is drawn in the model: for gradients to the last digit."""
    recipe = matching.debug().override(["inputs.id_dropout=0", "model.num_negatives=0"])
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def assert_agrees(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert max(value.abs().max() for value in expected.values()) > 1e-2
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=2e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("num_parts", [2, 3])
def test_micro_batches_of_different_sizes_agree(sequence_rows: str, num_parts: int):
    whole = gradients(exact(), sequence_rows, 1)
    assert_agrees(gradients(exact(), sequence_rows, num_parts), whole)


@pytest.mark.slow
@pytest.mark.parametrize("num_parts", [1, 2])
def test_ranks_agree(sequence_rows: str, tmp_path: Path, num_parts: int):
    from content_cases import from_ranks

    found = from_ranks(2, gradients, tmp_path, exact(engine="ddp"), sequence_rows, num_parts)
    assert_agrees(found, gradients(exact(), sequence_rows, 1))
