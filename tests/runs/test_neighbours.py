"""What queries find, by plain loops beside it; maps and pictures; what the memory served."""

import base64
import io

import pytest
import torch
from torch.nn import functional as F

from querykey.features.features import Features, features_from_array
from querykey.runs.neighbours import Side, compare_neighbours, sample_indices
from querykey.runs.projections import make_sprite, maps_of
from querykey.runs.report_data import _served


def rows(count, seed, width=6):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def labelled(count=40, classes=5):
    return features_from_array(rows(count, 0), y=(torch.arange(count) % classes).numpy())


def paired(queries=12, documents=30):
    pairs = torch.tensor([[q, (7 * q) % documents, 1] for q in range(queries)] + [[0, 5, 1], [3, 9, 2]])
    base = features_from_array(rows(documents, 1))
    asking = features_from_array(rows(queries, 2))
    return Features(base.vectors, base.ids, None, (), base.previews, "", queries=asking, pairs=pairs)


def order(query, items, own=None):
    """Items by cosine, best first, without the query's own row."""
    scores = [
        (-float(F.normalize(query, dim=0) @ F.normalize(item, dim=0)), place)
        for place, item in enumerate(items)
    ]
    return [place for _, place in sorted(scores) if place != own]


def test_labels_by_plain_loops():
    features, moved = labelled(), rows(40, 3)
    sides = [Side("frozen", features.vectors, None), Side("adapted", moved, None)]
    found = compare_neighbours(features, sides)
    assert (found.kind, found.num_queries) == ("labels", 40)
    hits, ranks, new = [], {}, {}
    for query in range(40):
        lists = [order(side.rows[query], side.rows, own=query) for side in sides]
        right = [[features.labels[i] == features.labels[query] for i in one] for one in lists]
        hits.append([float(one[0]) for one in right])
        ranks[query] = [one.index(True) + 1 for one in right]
        new[query] = len(set(lists[1][:5]) - set(lists[0][:5]))
    first = found.metrics[0]
    assert first.name == "R@1"
    assert [side.mean for side in first.sides] == pytest.approx(torch.tensor(hits).mean(dim=0).tolist())
    assert first.difference.mean == pytest.approx(first.sides[1].mean - first.sides[0].mean)
    worst = sorted(ranks, key=lambda query: (-ranks[query][1], query))[:8]
    assert [one.query for one in found.failures] == worst
    assert [list(one.ranks) for one in found.failures] == [ranks[query] for query in worst]
    assert [one.new for one in found.changed] == sorted(new.values(), reverse=True)[:8]
    for one in found.changed:
        assert [a.item for a in one.found[1]] == order(moved[one.query], moved, own=one.query)[:5]


def test_pairs_by_plain_loops():
    features = paired()
    sides = [
        Side("frozen", features.vectors, features.queries.vectors),
        Side("adapted", rows(30, 4), rows(12, 5)),
    ]
    found = compare_neighbours(features, sides)
    assert (found.kind, found.num_queries) == ("pairs", 12)
    relevant = {q: {d for query, d, _ in features.pairs.tolist() if query == q} for q in range(12)}
    for place, side in enumerate(sides):
        ranks = [min(order(side.queries[q], side.rows).index(d) for d in relevant[q]) + 1 for q in range(12)]
        mrr = sum(1 / rank if rank <= 10 else 0 for rank in ranks) / 12
        assert found.metrics[0].name == "MRR@10"
        assert found.metrics[0].sides[place].mean == pytest.approx(mrr)
        assert found.metrics[1].sides[place].mean == pytest.approx(sum(rank == 1 for rank in ranks) / 12)
    for one in (*found.changed, *found.failures):
        for side in one.found:
            assert all(answer.is_right == (answer.item in relevant[one.query]) for answer in side)


def test_of_equal_rows_the_lower_comes_first_in_ranks_as_in_answers():
    features = features_from_array(torch.ones(6, 3), y=[0, 1, 1, 1, 1, 0])
    found = compare_neighbours(features, [Side("h", features.vectors, None)])
    assert {one.query: list(one.ranks) for one in found.failures} == {0: [5], 1: [2], 2: [2], 3: [2], 4: [2]}
    assert found.metrics[0].sides[0].mean == pytest.approx(1 / 6)


def test_without_labels_it_says_what_stayed_and_claims_no_failures():
    features = features_from_array(rows(30, 0))
    same = compare_neighbours(
        features, [Side("a", features.vectors, None), Side("b", 3 * features.vectors, None)]
    )
    assert (same.kind, same.changed, same.failures) == ("neighbours", [], [])
    assert same.metrics[0].sides[0].mean == 1.0
    assert compare_neighbours(features, [Side("h", features.vectors, None)]).metrics == []


def test_rows_of_a_singleton_or_unknown_class_are_no_queries():
    features = features_from_array(rows(5, 0), y=[0, 0, 1, -1, -1])
    assert compare_neighbours(features, [Side("h", features.vectors, None)]).num_queries == 2


def test_what_is_drawn_is_in_order_and_always_the_same():
    numbers = sample_indices(5000, 100)
    assert numbers.tolist() == sorted(set(numbers.tolist())) == sample_indices(5000, 100).tolist()
    assert len(numbers) == 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_map_is_the_two_axes_of_most_variance_and_never_mirrored(dtype):
    cloud = torch.cat([torch.ones(50, 1) * 4, rows(50, 0, 3) * torch.tensor([2.0, 1.0, 0.1])], dim=1)
    first = maps_of(cloud.to(dtype), "frozen")[0]
    unit = F.normalize(cloud.to(dtype).float(), dim=1).double()
    _, values, _ = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    assert (first.places**2).sum(0).tolist() == pytest.approx((values[:2] ** 2).tolist(), rel=1e-6)
    share = (values[0] ** 2 / (values**2).sum()).item()
    assert first.x == f"first axis, {share:.0%} of the variance"
    axes = (unit - unit.mean(0)).T @ first.places
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()
    again = maps_of(cloud.to(dtype).flip(0), "frozen")[0]
    assert torch.allclose(again.places.flip(0), first.places, atol=1e-9)


def test_rows_that_are_all_one_still_have_a_map():
    assert torch.equal(maps_of(torch.ones(3, 4), "h")[0].places, torch.zeros(3, 2, dtype=torch.float64))
    assert maps_of(torch.tensor([[1.0], [2.0]]), "h")[0].places.shape == (2, 2)


def test_umap_is_drawn_where_it_is_installed():
    pytest.importorskip("umap")
    assert [one.title for one in maps_of(rows(40, 0), "h")] == ["h, PCA", "h, UMAP"]


@pytest.fixture
def image_features(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for place, colour in enumerate(("red", "lime", "blue")):
        folder = tmp_path / "images" / "abc"[place]
        folder.mkdir(parents=True)
        image.new("RGB", (20, 10), colour).save(folder / "one.png")
    from querykey.data.readers.open import read_source

    source = read_source(tmp_path / "images")
    about = {"source": {"name": str(tmp_path / "images"), "kind": "image", "fingerprint": source.fingerprint}}
    plain = features_from_array(rows(3, 0), ids=list(source.ids))
    return Features(plain.vectors, plain.ids, None, (), plain.previews, "", meta=about)


def test_pictures_stand_on_one_sprite_where_the_items_say(image_features):
    from PIL import Image

    sprite = make_sprite(image_features, [2, 0, 2])
    assert sprite == make_sprite(image_features, [0, 2])
    picture = Image.open(io.BytesIO(base64.b64decode(sprite.uri.partition(",")[2]))).convert("RGB")
    assert picture.size == (sprite.columns * sprite.size, sprite.rows * sprite.size)
    for item, strongest in ((0, 0), (2, 2)):
        row, column = divmod(sprite.place[item], sprite.columns)
        middle = picture.getpixel((int((column + 0.5) * sprite.size), int((row + 0.5) * sprite.size)))
        assert middle.index(max(middle)) == strongest


def test_images_that_have_changed_are_not_shown(image_features, tmp_path):
    (tmp_path / "images" / "a" / "one.png").write_bytes((tmp_path / "images" / "b" / "one.png").read_bytes())
    assert make_sprite(image_features, [0]) is None
    assert make_sprite(features_from_array(rows(3, 0)), [0]) is None


def test_keys_drawn_from_the_memory_by_plain_loops():
    features = labelled()
    served = _served(features, are_pairs=False)
    own = [
        [features.labels[i] == features.labels[query] for i in order(row, features.vectors, own=query)[:10]]
        for query, row in enumerate(features.vectors)
    ]
    assert served.suspects == pytest.approx(torch.tensor(own).double().mean().item())
    assert served.by_chance == pytest.approx(7 / 39)
    for one in served.shown:
        assert [answer.is_right for answer in one.found[0]] == [not right for right in own[one.query][:5]]


def test_keys_drawn_from_the_memory_are_never_the_query_itself():
    features = paired()
    served = _served(features, are_pairs=True)
    suspects = []
    for query in range(12):
        mine = {d for q, d, _ in features.pairs.tolist() if q == query}
        ranked = order(features.queries.vectors[query], features.vectors)
        best = min(map(ranked.index, mine))
        others = [(place, item) for place, item in enumerate(ranked) if item not in mine][:10]
        suspects += [place < best for place, _ in others]
        for one in served.shown:
            if one.query == query:
                assert [answer.item for answer in one.found[0]] == [item for _, item in others[:5]]
                assert [not answer.is_right for answer in one.found[0]] == [p < best for p, _ in others[:5]]
    assert served.suspects == pytest.approx(sum(suspects) / len(suspects))
