"""Sizes, bits, rows and codes in any type that a caller has: taken, or refused in one message."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from querykey import Adapter
from querykey.cli.main import app
from querykey.errors import ConfigError, DataError, RangeError, ShapeError
from querykey.export import export_onnx, export_safetensors
from querykey.runtime import search_codes
from querykey.runtime.frontier import parse_bytes

ROWS = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def adapter():
    settings = {"candidates": "closed_form", "batch_size": 8, "validation_fraction": 0.0}
    return Adapter(dims=[16, 8], bits=[8, 1], **settings).fit(ROWS)


@pytest.mark.parametrize(
    "dims", [np.array([16, 8]), torch.tensor([8, 16]), [16.0, np.int8(8)], (8, 16, 8), range(16, 7, -8)]
)
def test_sizes_in_any_container_are_fitted(dims):
    settings = Adapter(dims=dims, bits=np.array([8, 8]))._settings()
    assert set(settings.dims) == {16, 8}
    assert settings.bits == (8,)


@pytest.mark.parametrize("dims", ["16,8", ["16"], [8.5], [np.nan], [np.inf], [None], [True], [[8, 4]]])
def test_sizes_that_are_no_whole_numbers_are_refused(dims, adapter, tmp_path):
    for name in ("dims", "bits"):
        with pytest.raises(ConfigError, match=rf"{name} must be whole numbers, such as \[8\]"):
            Adapter(**{name: dims}).fit(ROWS)
    with pytest.raises(ConfigError, match="dims must be whole numbers"):
        export_onnx(adapter.fc_, tmp_path / "onnx", dims=dims)


@pytest.mark.parametrize("export", [export_onnx, export_safetensors])
@pytest.mark.parametrize("dims", [[32], [0], np.array([8, -1])])
def test_sizes_that_the_layer_has_not_are_not_exported(export, dims, adapter, tmp_path):
    with pytest.raises(RangeError, match="dims must be from 1 to the width of the layer, 16"):
        export(adapter.fc_, tmp_path / "out", dims=dims)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dim", [7, 0, 17])
def test_a_size_is_taken_or_refused_alike_by_the_estimator_and_the_runtime(dim, adapter):
    for one in (adapter, adapter.saved().loaded()):
        for call in (one.transform, one.quantize, lambda _, dim, one=one: one.code(dim=dim)):
            with pytest.raises(RangeError, match="has the sizes 16, 8; got dim="):
                call(ROWS, dim=dim)


@pytest.mark.parametrize("bits", [3, 32, 0])
def test_bits_that_no_fit_has_are_not_recommended(bits, adapter):
    for call in (lambda: adapter.code(bits=bits), lambda: adapter.quantize(ROWS, bits=bits)):
        with pytest.raises(RangeError, match="bits must be 8 or 1, got"):
            call()


@pytest.mark.parametrize("bits", [8, 1])
def test_codes_are_made_of_rows_in_any_container_and_of_finite_numbers_alone(bits, adapter):
    code, rows = adapter.code(bits=bits), np.asarray(adapter.transform(ROWS))
    codes = code.encode(rows)
    for given in (rows.tolist(), torch.from_numpy(rows), rows.astype(object)):
        assert np.array_equal(code.encode(given), codes)
        np.testing.assert_allclose(code.scores(given, codes), code.scores(rows, codes), atol=1e-6)
        assert np.array_equal(search_codes(code, given, codes, 3)[1], search_codes(code, rows, codes, 3)[1])
    bad = np.where(np.arange(40)[:, None] == 7, np.nan, rows)
    for call in (
        code.encode,
        lambda bad: code.scores(bad, codes),
        lambda bad: search_codes(code, bad, codes, 3),
    ):
        with pytest.raises(DataError, match="1 of 40 rows hold NaN or infinity, the first of them row 7"):
            call(bad)
        with pytest.raises(DataError, match="real numbers"):
            call(rows + 1j)


@pytest.mark.parametrize("bits", [8, 1])
def test_codes_of_another_type_or_size_are_refused(bits, adapter):
    code, codes = adapter.code(bits=bits), adapter.quantize(ROWS, bits=bits)
    rows = np.asarray(adapter.transform(ROWS))
    wrong = codes.view(np.uint8 if bits == 8 else np.int8)  # the same bytes, other numbers
    for call in (
        code.decode,
        lambda codes: code.scores(rows, codes),
        lambda codes: search_codes(code, rows, codes, 3),
    ):
        for other in (wrong, codes.astype(np.float32), codes.astype(np.int64)):
            with pytest.raises(DataError, match=f"codes at {bits} bits are u?int8, got"):
                call(other)
    for call in (code.decode, lambda codes: code.scores(rows, codes)):
        for other in (codes[:, :-1], codes[0]):
            with pytest.raises(ShapeError, match="codes of this size are"):
                call(other)
    for k in (0, 41):
        with pytest.raises(RangeError, match="k must be from 1 to the 40 codes"):
            search_codes(code, rows, codes, k)


def test_a_number_of_bytes_of_any_length_is_read():
    assert parse_bytes("9" * 400) == int("9" * 400)
    assert (parse_bytes("1.1kB"), parse_bytes("0.29kB")) == (1100, 290)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "[]", '{"frontier": [3]}', '{"frontier": [{"dim": 8, "bits": 7, "bytes": 8}]}',
     '{"frontier": [{"dim": "8", "bits": 8, "bytes": 8}]}', '{"frontier": [{"dim": 8, "bits": 8}]}',
     '{"frontier": [{"dim": 8, "bits": 8, "bytes": 8, "quality": "x"}]}'],
)  # fmt: skip
def test_a_damaged_table_of_sizes_is_one_message(content, adapter, tmp_path):
    adapter.save(tmp_path / "run")
    (tmp_path / "run" / "adapter.json").write_text(content)
    done = CliRunner().invoke(app, ["size", str(tmp_path / "run")])
    assert (done.exit_code, done.exception.__class__) == (2, SystemExit)
    assert "adapter.json is damaged" in done.stderr
