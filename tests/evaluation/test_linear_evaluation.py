"""Linear evaluation: the optimum, the path, the descents, and what a result says."""

import json
import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits
from torch.nn import functional as F

from querykey.errors import DataError, RangeError, ShapeError
from querykey.evaluation import linear_evaluation as linear_protocols
from querykey.evaluation import logistic_regression as solver
from querykey.evaluation.linear_evaluation import MOCO, SIMCLR, LinearDescent, descend, linear_evaluation
from querykey.evaluation.logistic_regression import LogisticProblem, l2_path, spectrum_of, standardisation


def clouds(count=300, width=8, classes=3, apart=1.0, seed=0):
    """Rows around a centre for each class, of very different variance by direction."""
    draw = torch.Generator().manual_seed(seed)
    members = torch.arange(count) % classes
    centres = apart * torch.randn(classes, width, generator=draw)
    rows = centres[members] + torch.randn(count, width, generator=draw)
    return rows * torch.logspace(0, -2, width), members


def problem_of(rows, members, classes):
    return LogisticProblem(rows, members, classes, spectrum_of(rows))


def objective(rows, members, weight, bias, l2):
    logits = (rows.double() @ weight.T + bias).tolist()
    nats = 0.0
    for scores, own in zip(logits, members.tolist(), strict=True):
        highest = max(scores)
        nats += highest + math.log(sum(math.exp(s - highest) for s in scores)) - scores[own]
    return nats / len(logits) + l2 / 2 * float(weight.square().sum())


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("block", [50, 4096])
def test_the_optimum_is_that_of_scikit_learn(l2, block, monkeypatch):
    monkeypatch.setattr(solver, "BLOCK", block)
    rows, members = clouds()
    solution = problem_of(rows, members, 3).solve(l2)
    theirs = LogisticRegression(C=1 / (len(rows) * l2), tol=1e-10, max_iter=5000)
    theirs.fit(rows.double().numpy(), members.numpy())
    weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
    reached = objective(rows, members, solution.weight, solution.bias, l2)
    assert solution.converged
    assert reached == pytest.approx(objective(rows, members, weight, bias, l2), abs=1e-5)
    assert solution.loss == pytest.approx(reached, abs=1e-6)


def test_two_classes_are_scikit_learns_with_half_the_penalty():
    rows, members = clouds(classes=2)
    ours = problem_of(rows, members, 2).solve(0.02)
    theirs = LogisticRegression(C=1 / (len(rows) * 0.01), tol=1e-10).fit(
        rows.double().numpy(), members.numpy()
    )
    odds = ours.weight[1] - ours.weight[0]
    assert odds.tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=2e-3)


def test_a_warm_start_ends_where_a_cold_one_does():
    rows, members = clouds()
    problem = problem_of(rows, members, 3)
    cold = problem.solve(1e-3)
    warm = problem.solve(1e-3, problem.solve(2e-3))
    assert warm.loss == pytest.approx(cold.loss, abs=1e-5)
    assert problem.solve(1e-3, cold).iterations <= 2
    assert problem.solve(1e-3, cold).loss <= cold.loss + 1e-7


@pytest.mark.parametrize("l2", [1e-1, 1e-5])
def test_the_spectrum_decides_how_fast_and_not_where(l2):
    """A column that is nearly always 0, as pixels at the border are, must not stop the solver early."""
    rows, members = clouds(count=600, width=20)
    rows[::50, 3] += 40
    rows = (rows - rows.mean(0)) / rows.std(0)
    own = problem_of(rows, members, 3).solve(l2)
    plain = spectrum_of(torch.eye(20) * 20**0.5)
    other = LogisticProblem(rows, members, 3, plain).solve(l2)
    assert own.loss == pytest.approx(other.loss, abs=2e-5)
    assert own.iterations < 40


def test_a_strong_penalty_leaves_the_shares_of_the_classes():
    """With weights of 0 the biases alone are fitted: the optimum is the entropy of the classes."""
    rows, members = clouds(count=99)
    members = torch.where(torch.arange(99) < 60, 0, members)
    solution = problem_of(rows, members, 3).solve(1e6)
    share = members.bincount() / len(members)
    assert solution.bias.softmax(0).tolist() == pytest.approx(share.tolist(), abs=1e-3)
    assert solution.loss == pytest.approx(float(torch.special.entr(share).sum()), abs=1e-4)


def test_more_columns_than_rows_and_columns_of_zeros():
    rows = F.pad(torch.randn(20, 60, generator=torch.Generator().manual_seed(0)), (0, 4))
    solution = problem_of(rows, torch.arange(20) % 2, 2).solve(1e-4)
    assert solution.converged
    assert solution.weight[:, -4:].abs().max() < 1e-9
    assert (solution.logits(rows).argmax(1) == torch.arange(20) % 2).all()


def test_too_few_iterations_are_reported(monkeypatch):
    monkeypatch.setattr(solver, "MAX_ITERATIONS", 2)
    assert not problem_of(*clouds(), 3).solve(1e-4).converged
    with pytest.raises(RangeError, match="l2 must be above 0, got 0"):
        problem_of(*clouds(), 3).solve(0.0)


def test_the_solver_leaves_the_cores_to_pytorch(monkeypatch):
    """Threads of SciPy's BLAS that spin between two evaluations would take them."""
    threads, original = set(), LogisticProblem._cross_entropy

    def watched(self, *given):
        found = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
        threads.update(found)
        return original(self, *given)

    monkeypatch.setattr(LogisticProblem, "_cross_entropy", watched)
    with threadpool_limits(limits=2, user_api="blas"):
        problem_of(*clouds(), 3).solve(0.1)
        assert {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"} == {2}
    assert threads == {1}


def test_standardising(monkeypatch):
    monkeypatch.setattr(solver, "BLOCK", 7)
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 3 + 100
    mean, std = standardisation(rows)
    assert mean.tolist() == pytest.approx(rows.double().mean(0).tolist(), rel=1e-6)
    assert std.tolist() == pytest.approx(rows.double().std(0, correction=0).tolist(), rel=1e-5)
    constant = torch.tensor([0.1, 1e6 + 0.1, 0.0]).repeat(50, 1)
    mean, std = standardisation(constant)
    assert std.tolist() == [1.0, 1.0, 1.0]
    assert (constant - mean).abs().max() == 0


def test_the_path_goes_on_from_strong_to_weak_and_ends_after_a_clear_fall():
    """Random labels of as many columns as rows: every weaker penalty learns more by heart."""
    rows, members = clouds(count=400, width=30, apart=0.4)
    noise = torch.randn(400, 300, generator=torch.Generator().manual_seed(1))
    rows = torch.cat([rows / rows.std(0), noise], dim=1)
    problem = problem_of(rows[:200], members[:200], 3)
    points, solutions = l2_path([(problem, rows[200:], members[200:])])
    assert [point.l2 for point in points] == list(solver.PATH[: len(points)])
    assert list(solutions) == [point.l2 for point in points]
    assert len(points) < len(solver.PATH)
    best = max(point.accuracy for point in points)
    error = max(math.sqrt(best * (1 - best) / 200), 1 / 200)
    clear = points[-1].accuracy < best - 2 * error
    lowest = min(range(len(points)), key=lambda i: points[i].loss)
    highest = next(i for i, point in enumerate(points) if point.accuracy == best)
    assert clear or len(points) - 1 - max(lowest, highest) == solver.PATIENCE
    again = points[lowest]
    logits = solutions[again.l2].logits(rows[200:])
    assert again.accuracy == pytest.approx(float((logits.argmax(1) == members[200:]).float().mean()))
    assert again.loss == pytest.approx(float(F.cross_entropy(logits, members[200:])), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_problem_has_the_scores_of_a_small_one(dtype, monkeypatch):
    train, labels = clouds(count=2000, width=16, classes=7, apart=1.5)
    test, truth = clouds(count=3000, width=16, classes=7, apart=1.5)
    small = linear_evaluation(train, labels, test, truth, seed=0)
    monkeypatch.setattr(linear_protocols, "LARGE", 1)
    monkeypatch.setattr(linear_protocols, "remembered_fast_dtype", lambda: dtype)
    large = linear_evaluation(train, labels, test, truth, seed=0)
    assert large.constants["path_dtype"] == str(dtype).removeprefix("torch.")
    assert large.converged
    assert abs(large.top_1 - small.top_1) < 0.003
    for ours, exact in zip(large.path, small.path, strict=False):
        assert ours.accuracy == pytest.approx(exact.accuracy, abs=0.005)
        assert ours.loss == pytest.approx(exact.loss, abs=0.01)
    assert sum(point.iterations for point in large.path) < sum(point.iterations for point in small.path)


def test_a_path_that_starts_where_the_last_solutions_lead_takes_fewer_iterations():
    rows, members = clouds(count=900, width=24, classes=9, apart=1.0)
    parts = [(problem_of(rows[:600], members[:600], 9), rows[600:], members[600:])]
    plain, _ = l2_path(parts, tolerance=1e-8)
    ahead, solutions = l2_path(parts, tolerance=1e-8, extrapolates=True)
    for ours, theirs in zip(ahead, plain, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-3)
    assert sum(point.iterations for point in ahead) < 0.85 * sum(point.iterations for point in plain)
    assert parts[0][0].solve(ahead[3].l2).loss == pytest.approx(solutions[ahead[3].l2].loss, abs=1e-5)


def test_a_path_of_patience_1_ends_at_the_first_weight_that_improves_nothing():
    rows, members = clouds(count=900, width=24, classes=9, apart=1.0)
    parts = [(problem_of(rows[:600], members[:600], 9), rows[600:], members[600:])]
    points, _ = l2_path(parts, patience=1)
    best = [max(point.accuracy for point in points[:i]) for i in range(1, len(points))]
    lowest = [min(point.loss for point in points[:i]) for i in range(1, len(points))]
    improved = [p.accuracy > a or p.loss < b for p, a, b in zip(points[1:], best, lowest, strict=True)]
    assert improved == [True] * (len(points) - 2) + [False]


def test_products_in_bfloat16_reach_the_optimum_up_to_their_rounding():
    rows, members = clouds()
    exact = problem_of(rows, members, 3).solve(1e-2)
    rounded = LogisticProblem(rows.bfloat16(), members, 3, spectrum_of(rows)).solve(1e-2, tolerance=1e-5)
    assert rounded.weight.dtype == torch.float64
    reached = objective(rows, members, rounded.weight, rounded.bias, 1e-2)
    assert exact.loss - 1e-6 <= reached <= exact.loss + 1e-3


def test_a_result_says_what_was_right():
    train, labels = clouds(count=240, classes=6, apart=2.0)
    test, truth = train[:60] + 0.001, labels[:60].clone()
    truth[:6] = -1
    truth[6] = 77
    result = linear_evaluation(train, labels * 10, test, torch.where(truth < 0, -1, truth * 10), seed=0)
    assert result.correct[:6].isnan().all()
    assert result.correct[6] == 0
    assert result.top_1 == pytest.approx(float(result.correct[6:].mean()))
    assert result.top_1 > 0.8
    assert result.top_1 <= result.top_5 < 1
    assert set(result.per_class) == {0, 10, 20, 30, 40, 50, 770}
    assert result.per_class[770] == 0
    mine = truth == 3
    assert result.per_class[30] == pytest.approx(float(result.correct[mine].mean()))
    assert (result.train_rows, result.classes, result.converged) == (240, 6, True)
    assert result.l2 in solver.PATH
    best = max(point.accuracy for point in result.path)
    assert result.l2 == max(point.l2 for point in result.path if point.accuracy == best)
    record = json.loads(json.dumps(result.as_dict()))
    assert record["per_class"]["770"] == 0
    assert record["constants"]["standardised"] is True
    assert record["constants"]["seed"] == 0
    assert record["path"][0]["l2"] == 10
    assert "correct" not in record


@pytest.mark.parametrize("protocol", ["lbfgs", "moco", "simclr"])
def test_every_protocol_separates_what_is_separate_and_repeats_itself(protocol):
    train, labels = clouds(count=200, classes=2, apart=3.0)
    state = torch.get_rng_state()
    first, second = (
        linear_evaluation(train, labels, train, labels, protocol=protocol, seed=3) for _ in range(2)
    )
    assert first.top_1 > 0.95
    assert first.top_5 is None
    assert torch.equal(first.correct, second.correct)
    assert first.path == second.path
    assert first.protocol == protocol
    assert torch.equal(torch.get_rng_state(), state)


def test_scale_and_shift_of_a_column_do_not_matter_to_the_protocol_to_quote():
    train, labels = clouds()
    other, constant = train * 1000 + 5, torch.full((len(train), 1), 7.3)
    plain = linear_evaluation(train, labels, train, labels, seed=0)
    moved = linear_evaluation(other, labels, other, labels, seed=0)
    wider = torch.cat([train, constant], dim=1)
    widened = linear_evaluation(wider, labels, wider + torch.tensor([0.0] * 8 + [50.0]), labels, seed=0)
    assert abs(plain.top_1 - moved.top_1) < 0.01
    assert abs(plain.top_1 - widened.top_1) < 0.01


def test_unlabelled_rows_have_no_part():
    train, labels = clouds()
    strange = torch.cat([train, 100 * torch.randn(50, 8, generator=torch.Generator().manual_seed(0))])
    with_strange = F.pad(labels, (0, 50), value=-1)
    plain = linear_evaluation(train, labels, train, labels, protocol="simclr", seed=0)
    other = linear_evaluation(strange, with_strange, train, labels, protocol="simclr", seed=0)
    assert other.train_rows == 300
    assert torch.equal(plain.correct, other.correct)
    given = train.clone()
    linear_evaluation(train, labels, train, labels, seed=0)
    assert torch.equal(train, given)


def test_few_labels_are_the_chosen_rows(monkeypatch):
    train, labels = clouds(count=400)
    few = linear_evaluation(train, labels, train, labels, labels_fraction=0.1, seed=5)
    kept = linear_protocols.choose_labelled(labels, fraction=0.1, seed=5)
    alone = linear_evaluation(train[kept], labels[kept], train, labels, seed=5)
    assert few.train_rows == len(kept) == 39
    assert few.constants["splits"] == 5
    assert few.constants["labels_fraction"] == 0.1
    assert few.top_1 == pytest.approx(alone.top_1, abs=0.03)
    monkeypatch.setattr(linear_protocols, "FEW_ROWS", 39)
    assert linear_evaluation(train[kept], labels[kept], train, labels, seed=5).constants["splits"] == 1


def test_one_row_a_class_has_nothing_to_choose_by():
    result = linear_evaluation(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), seed=0)
    assert (result.top_1, result.l2, result.path) == (1.0, 0.01, ())


def reference_descent(rows, members, classes, protocol, seed):
    """The same with autograd, a network and torch's own schedule."""
    import numpy as np

    model = torch.nn.Linear(rows.shape[1], classes)
    with torch.no_grad():
        drawn = torch.randn(classes, rows.shape[1], generator=torch.Generator().manual_seed(seed))
        model.weight.copy_(0.01 * drawn)
        model.bias.zero_()
    batch = min(protocol.batch_size, len(rows))
    rate = protocol.base_learning_rate * (batch / 256 if protocol.reference_batch else 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=protocol.nesterov)
    steps = protocol.epochs * math.ceil(len(rows) / batch)
    if protocol.schedule == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    else:
        schedule = torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [m * steps // protocol.epochs for m in (60, 80)]
        )
    for epoch in range(protocol.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows), batch):
            own = torch.from_numpy(order[start : start + batch])
            loss = F.cross_entropy(model(rows[own]), members[own])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.weight.detach(), model.bias.detach()


@pytest.mark.parametrize(
    "protocol",
    [
        LinearDescent(
            base_learning_rate=3.0,
            reference_batch=None,
            batch_size=16,
            epochs=90,
            nesterov=False,
            schedule="steps",
        ),
        SIMCLR,
    ],
)
def test_a_descent_is_that_of_autograd(protocol):
    rows, members = clouds(count=40)
    ours = descend(rows, members, 3, protocol=protocol, seed=2)
    theirs = reference_descent(rows, members, 3, protocol, seed=2)
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(ours[1], theirs[1], atol=2e-3, rtol=2e-3)


def test_the_papers_constants():
    large = SIMCLR.resolved(50_000)
    assert (large["learning_rate"], large["epochs"], large["weight_decay"]) == (1.6, 90, 0)
    assert SIMCLR.resolved(512)["learning_rate"] == pytest.approx(0.2)
    moco = MOCO.resolved(50_000)
    assert (moco["learning_rate"], moco["batch_size"], moco["epochs"]) == (30, 256, 100)
    assert moco["steps"] == 100 * 196


def test_bad_input_is_one_message():
    rows, labels = clouds(count=12)
    with pytest.raises(ShapeError, match="12 training rows and 11 labels"):
        linear_evaluation(rows, labels[:11], rows, labels, seed=0)
    with pytest.raises(ShapeError, match="12 test rows and 11 labels"):
        linear_evaluation(rows, labels, rows, labels[:11], seed=0)
    with pytest.raises(ShapeError, match="8 wide and test rows 7"):
        linear_evaluation(rows, labels, rows[:, :7], labels, seed=0)
    with pytest.raises(DataError, match="two classes, got 1"):
        linear_evaluation(rows, torch.zeros_like(labels), rows, labels, seed=0)
    with pytest.raises(DataError, match="two classes, got 0"):
        linear_evaluation(rows, torch.full_like(labels, -1), rows, labels, seed=0)
    with pytest.raises(DataError, match="no test row is labelled"):
        linear_evaluation(rows, labels, rows, torch.full_like(labels, -1), seed=0)
    with pytest.raises(DataError, match="the test rows hold NaN"):
        linear_evaluation(rows, labels, rows * torch.nan, labels, seed=0)
    with pytest.raises(RangeError, match="fraction must be above 0"):
        linear_evaluation(rows, labels, rows, labels, labels_fraction=0.0, seed=0)
