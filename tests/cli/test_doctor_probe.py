"""`querykey doctor --probe-batch-norm`: what it says for each outcome."""

import pytest

from querykey.pretraining import batchnorm_leak
from querykey.pretraining.batchnorm_leak import Leakage


def found(accuracy):
    return Leakage(accuracy, accuracy - 0.01, accuracy + 0.01, 0.05, 1000)


@pytest.fixture
def probed(querykey, monkeypatch):
    def run(accuracies, *arguments):
        asked = []

        def probe(method, **options):
            asked.append((method, options))
            return found(accuracies[len(asked) - 1])

        monkeypatch.setattr(batchnorm_leak, "probe_leakage", probe)
        said = querykey("doctor", "--probe-batch-norm", *arguments)
        assert said.code == 0, said.err
        assert max(map(len, said.out.splitlines())) <= 80
        return said, asked

    return run


def test_a_leak_and_what_to_do(probed):
    said, asked = probed([0.9, 0.05, 0.2, 0.05, 0.9, 0.05], "--groups", 6, "--seed", 3)
    assert "pairs of noise without shared content, 6 groups of 4 rows, seed 3" in said.flat
    assert "Split batch norm in order leaks which key is the positive" in said.flat
    assert "Split batch norm with shuffling does not leak in this probe." in said.flat
    assert "Batch norm over the full batch leaks in MoCo too" in said.flat
    assert "90.0% 89.0% to 91.0% 5.0% leaks" in said.flat
    assert {method for method, _ in asked} == {"moco", "end-to-end"}
    assert all(options["seed"] == 3 for _, options in asked)
    assert [options["groups"] for _, options in asked if options["kind"] == "split"] == [6] * 4
    assert "machine" not in said.out


def test_a_rest_and_no_leak(probed):
    said, _ = probed([0.05, 0.07, 0.05, 0.05, 0.05, 0.05])
    assert "Split batch norm in order does not leak" in said.flat
    assert "Split batch norm with shuffling leaks a little" in said.flat
    assert "full batch leaks" not in said.flat


def test_it_runs_and_goes_on_to_the_data(querykey, monkeypatch, data):
    real = batchnorm_leak.probe_leakage
    few = {"steps": 1, "tests": 1}
    monkeypatch.setattr(batchnorm_leak, "probe_leakage", lambda method, **given: real(method, **given | few))
    said = querykey("doctor", data / "train.npz", "--probe-batch-norm", "--groups", 2)
    assert said.code == 0
    assert "use: querykey adapt" in said.flat
