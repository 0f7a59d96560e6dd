"""First sentences that validation a fit without labels."""

import numpy as np
import pytest
import torch

from querykey.adapter.estimator import Adapter
from querykey.features.features import Features
from querykey.runs import pseudo_queries as run_pseudo_queries
from querykey.runs.pseudo_queries import first_sentence, pseudo_queries


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A tool that sorts rows. It reads tables of any size.", "A tool that sorts rows."),
        ("What sorts rows quickly here?\nThis one does it in place.", "What sorts rows quickly here?"),
        ("Too short. It reads tables of any size.", None),
        ("One sentence alone says nothing of the rest of a text", None),
        ("", None),
    ],
)
def test_a_first_sentence_is_one_that_something_follows(text, wanted):
    assert first_sentence(text) == wanted


def described(name, count, fingerprint="f"):
    meta = {"source": {"name": name, "kind": "text", "fingerprint": fingerprint},
            "model": {"spec": "toy", "key": "k"}}  # fmt: skip
    rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(0))
    numbers = [str(number) for number in range(count)]
    return Features(rows, numbers, None, (), numbers, "k", meta)


class Toy:
    """Stands for a frozen model: a sentence is the row of the number it names, with noise."""

    def __init__(self, rows):
        self.rows = rows

    def encode(self, texts):
        numbers = torch.tensor([int(text.split()[-1].strip(".")) for text in texts])
        noise = torch.randn(len(texts), 16, generator=torch.Generator().manual_seed(1))
        return self.rows[numbers] + 0.3 * noise


@pytest.fixture
def texts(tmp_path):
    lines = "".join(f'"This is the text number {row}. And so it goes on and on."\n' for row in range(300))
    (tmp_path / "texts.csv").write_text(f"text\n{lines}")
    return str(tmp_path / "texts.csv")


def test_first_sentences_validate_a_fit(texts, monkeypatch):
    from querykey.data.readers.open import read_source

    features = described(texts, 300, read_source(texts).fingerprint)
    monkeypatch.setattr(run_pseudo_queries, "encoder_of_features", lambda *_, **__: Toy(features.vectors))
    validation, said = pseudo_queries(features)
    assert said == "the fit is validated with 300 first sentences"
    assert validation.pairs.shape == (300, 2)
    assert sorted(validation.pairs[:, 1].tolist()) == list(range(300))
    adapter = Adapter(dim=8, steps=5).fit(features, queries=validation)
    assert adapter.report_["verdict"] in {"better", "no evidence", "start kept"}
    assert np.isfinite(adapter.transform(features)).all()


def test_texts_that_changed_or_are_missing_give_no_validation_and_a_note(texts, tmp_path):
    validation, said = pseudo_queries(described(texts, 300, "of other texts"))
    assert validation is None
    assert "has changed since the features were made" in said
    validation, said = pseudo_queries(described(str(tmp_path / "gone.csv"), 300))
    assert validation is None
    assert said.startswith("no pseudo-queries: ")
    assert pseudo_queries(Features(torch.eye(4), list("abcd"), None, (), list("abcd"), "")) == (None, "")
