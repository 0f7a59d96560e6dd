"""One step over a memory bank: the paper's steps, what each contrast looks up, and what is refused."""

import math

import oracles
import pytest
import step_toys
import torch
from dictionary_toys import LinearEncoder, images_of, plain

from querykey.dictionaries.bank import MemoryBank
from querykey.errors import CollapseError, RangeError
from querykey.losses import info_nce, nce, nce_normaliser
from querykey.losses.temperature import LearnedTemperature

ITEMS, SIZES = 7, [3, 2, 3, 3, 2]
CONTRASTS = ["softmax", "info_nce", "nce"]


def made(*, momentum=0.5, norm=False):
    encoder = LinearEncoder(norm=norm).double()
    bank = MemoryBank(items=ITEMS, dim=3, momentum=momentum).double()
    return encoder, torch.optim.SGD(encoder.parameters(), lr=0.2), bank


def ids_of(sizes):
    """In turn, so that an item comes back after three steps and its own row was written."""
    return [ids % ITEMS for ids in torch.arange(sum(sizes)).split(sizes)]


def steps(contrast, *, count=5, **options):
    encoder, optimizer, bank = made()
    output = [
        step_toys.bank(
            encoder, optimizer, bank, images, ids=ids, temperature=0.3, contrast=contrast,
            negatives=6, seed=step, **options,
        )
        for step, (images, ids) in enumerate(zip(images_of(SIZES)[:count], ids_of(SIZES), strict=False))
    ]  # fmt: skip
    return output, encoder, bank


@pytest.mark.parametrize("proximal", [0.0, 0.7])
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_five_steps_are_the_papers(contrast, proximal):
    """Beside plain loops whose gradient is a difference quotient."""
    encoder, _, bank = made()
    samples = [bank.sample(6, torch.Generator().manual_seed(step)).tolist() for step in range(5)]
    costs, weights, rows, normaliser = oracles.bank_steps(
        encoder.weight.tolist(), bank.vectors.tolist(),
        [(plain(x), ids.tolist()) for x, ids in zip(images_of(SIZES), ids_of(SIZES), strict=True)],
        samples, contrast=contrast, temperature=0.3, proximal=proximal, momentum=0.5, lr=0.2,
    )  # fmt: skip
    output, encoder, bank = steps(contrast, proximal=proximal)
    assert [step.loss for step in output] == pytest.approx(costs, rel=1e-7)
    torch.testing.assert_close(encoder.weight.data, torch.tensor(weights).double(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(bank.vectors, torch.tensor(rows).double(), rtol=1e-6, atol=1e-7)
    assert float(bank.normaliser) == pytest.approx(normaliser or 0.0, rel=1e-6)


@pytest.mark.parametrize("contrast", ["softmax", "info_nce"])
def test_chunked_it_is_the_same_step(contrast):
    whole, walked = steps(contrast, form="dense"), steps(contrast, form="chunked")
    for one, other in zip(whole[0], walked[0], strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-12)
    torch.testing.assert_close(walked[1].weight, whole[1].weight)
    torch.testing.assert_close(walked[2].vectors, whole[2].vectors)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_in_chunks_it_is_the_same_step(contrast):
    whole, chunked = steps(contrast), steps(contrast, chunks=2)
    torch.testing.assert_close(chunked[1].weight, whole[1].weight)
    torch.testing.assert_close(chunked[2].vectors, whole[2].vectors)


def test_the_positive_is_the_items_own_stored_row():
    encoder, optimizer, bank = made()
    stored, shown = bank.vectors.clone(), []
    images, ids = images_of([3])[0], torch.tensor([4, 0, 6])
    step = step_toys.bank(
        encoder, optimizer, bank, images, ids=ids, temperature=0.3, on_lookup=shown.append
    )  # fmt: skip
    assert torch.equal(step.view_2, stored[ids])
    (lookup,) = shown
    assert lookup.positive.nonzero().tolist() == [[0, 4], [1, 0], [2, 6]]
    assert torch.equal(lookup.negative, ~lookup.positive)
    assert not lookup.queries.requires_grad
    assert not torch.equal(bank.vectors[ids], stored[ids])
    others = [1, 2, 3, 5]
    assert torch.equal(bank.vectors[others], stored[others])


@pytest.mark.parametrize("contrast", ["info_nce", "nce"])
def test_rows_of_the_own_item_are_not_drawn_as_noise(contrast):
    """A draw of 60 from 7 items has every item many times."""
    encoder, optimizer, bank = made()
    shown = []
    ids = torch.tensor([4, 0, 6])
    step_toys.bank(
        encoder, optimizer, bank, images_of([3])[0], ids=ids, temperature=0.3, contrast=contrast,
        negatives=60, seed=5, on_lookup=shown.append,
    )  # fmt: skip
    drawn = MemoryBank(items=ITEMS, dim=3).sample(60, torch.Generator().manual_seed(5))
    (lookup,) = shown
    assert lookup.positive[:, :3].equal(torch.eye(3).bool())
    assert not lookup.positive[:, 3:].any()
    assert torch.equal(lookup.negative[:, 3:], ids[:, None] != drawn[None, :])


def test_the_normaliser_is_the_first_steps_and_stays():
    encoder, optimizer, bank = made()
    looked_up, kept = [], []
    for step, (images, ids) in enumerate(zip(images_of(SIZES), ids_of(SIZES), strict=True)):
        output = step_toys.bank(
            encoder, optimizer, bank, images, ids=ids, temperature=0.3, contrast="nce", negatives=6,
            seed=step, on_lookup=looked_up.append,
        )  # fmt: skip
        kept.append(bank.normaliser.clone())
        expected = nce(looked_up[-1], temperature=0.3, normaliser=kept[0], noise_items=ITEMS)
        assert output.loss == pytest.approx(float(expected.mean()))
    torch.testing.assert_close(kept[0], nce_normaliser(looked_up[0], temperature=0.3, items=ITEMS))
    assert len(set(map(float, kept))) == 1


def test_a_full_softmax_is_info_nce_over_the_bank():
    encoder, optimizer, bank = made()
    costs = []
    step = step_toys.bank(
        encoder, optimizer, bank, images_of([4])[0], ids=torch.arange(4), temperature=0.3,
        on_lookup=lambda lookup: costs.append(float(info_nce(lookup, temperature=0.3).mean())),
    )  # fmt: skip
    assert costs == pytest.approx([step.loss])


def test_a_learned_temperature_learns():
    encoder, _, bank = made()
    temperature = LearnedTemperature(0.3)
    optimizer = torch.optim.SGD([*encoder.parameters(), *temperature.parameters()], lr=0.1)
    before = temperature().item()
    step_toys.bank(
        encoder, optimizer, bank, images_of([4])[0], ids=torch.arange(4), temperature=temperature()
    )
    assert temperature().item() != before


def test_a_row_that_is_looked_up_again_and_again_is_found():
    """The loss falls: the same seven images, whose slots follow them."""
    encoder, optimizer, bank = made()
    images = images_of([ITEMS])[0]
    losses = [
        step_toys.bank(encoder, optimizer, bank, images, ids=torch.arange(ITEMS), temperature=0.2).loss
        for _ in range(30)
    ]
    assert losses[-1] < 0.3 * math.log(ITEMS) < losses[0]


def test_a_loss_that_is_not_finite_changes_neither_weights_nor_rows():
    encoder, optimizer, bank = made()
    weight, rows = encoder.weight.detach().clone(), bank.vectors.clone()
    images = images_of([3])[0]
    images[0] = math.nan
    with pytest.raises(CollapseError):
        step_toys.bank(encoder, optimizer, bank, images, ids=torch.arange(3), temperature=0.3)
    assert torch.equal(encoder.weight, weight)
    assert torch.equal(bank.vectors, rows)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"proximal": -1.0}, RangeError, "proximal must be >= 0 and finite, got -1.0; 0 leaves it out"),
        ({"proximal": math.nan}, RangeError, "proximal must be >= 0 and finite, got nan; 0 leaves it out"),
        (
            {"temperature": 0.0}, RangeError,
            "temperature must be > 0 and finite, got 0.0; 0.05 to 0.5 is usual",
        ),
        (
            {"ids": torch.tensor([0, 7])}, RangeError,
            (
                "the memory bank has slots for items 0 to 6 and was given item 7; "
                "give it as many slots as the data has items, and ids counted from 0"
            ),
        ),
    ],
)  # fmt: skip
def test_refuses_what_cannot_be_a_step(options, error, message):
    encoder, optimizer, bank = made()
    rows = bank.vectors.clone()
    settings = {"ids": torch.arange(2), "temperature": 0.3} | options
    with pytest.raises(error) as error:
        step_toys.bank(encoder, optimizer, bank, images_of([2])[0], **settings)
    assert str(error.value) == message
    assert torch.equal(bank.vectors, rows)
