"""The file of tuned masks: what was written is read, and nothing else is."""

import json
import os

import numpy as np
import pytest
from checkpoints import make_checkpoint
from conftest import BASE, FAMILIES, make_tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jax_probe_mtp.tuning import TunedMasks, load_masks, save_masks
from jax_probe_mtp.tuning.masks_file import MAX_BYTES, read_masks

ABOUT = {"model": {"name": "tiny", "fingerprint": "0123456789abcdef"}, "hits": [[0.1, 0.2]]}


def tuned(checkpoint=None, width=BASE.width, num_masks=2):
    from jax_probe_mtp.model.fingerprint import model_identity

    about = ABOUT if checkpoint is None else ABOUT | {"model": model_identity(checkpoint)}
    draw = np.random.default_rng(0)
    return TunedMasks(masks_MD=draw.normal(size=(num_masks, width)).astype(np.float32), about=about)


@pytest.fixture(scope="module")
def checkpoint():
    return make_checkpoint(make_tiny(BASE, 3))


def test_what_was_written_is_read(checkpoint, tmp_path):
    written = tuned(checkpoint)
    save_masks(written, tmp_path / "m.safetensors")
    read = load_masks(tmp_path / "m.safetensors", checkpoint)
    np.testing.assert_array_equal(read.masks_MD, written.masks_MD)
    assert (read.about, read.digest) == (written.about, written.digest)
    assert read.shared.dtype == np.float32
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_masks_that_could_not_be_read_again_are_not_written(tmp_path):
    diverged = tuned()
    diverged.masks_MD[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        save_masks(diverged, tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []


def test_the_digest_is_of_the_numbers_alone(checkpoint):
    assert tuned(checkpoint).digest == tuned().digest
    other = tuned()
    other.masks_MD[1, 3] = np.nextafter(other.masks_MD[1, 3], 9)
    assert other.digest != tuned().digest


def test_masks_of_another_model_are_refused(checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    save_masks(tuned(checkpoint), path)
    relative = make_checkpoint(make_tiny(BASE, 4))
    with pytest.raises(ValueError, match=r"\A[^\n]*was tuned for [^\n]*--masks-of-relative[^\n]*\Z"):
        load_masks(path, relative)
    assert load_masks(path, relative, is_relative=True).digest == tuned().digest


def test_masks_of_another_width_are_refused_even_of_a_relative(checkpoint, tmp_path):
    path = tmp_path / "m.safetensors"
    save_masks(tuned(checkpoint, width=23), path)
    for is_relative in (False, True):
        with pytest.raises(ValueError, match=r"\A[^\n]*masks of 23 numbers, [^\n]*is 24 wide[^\n]*\Z"):
            load_masks(path, checkpoint, is_relative=is_relative)


def about(**changes):
    return {"about": json.dumps({"format": 1, **ABOUT, **changes})}


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({"masks": np.zeros((4, 24), np.float32)}, about(), r"1 to 3 of the model's width, got float32 \[4, 24\]"),
        ({"masks": np.zeros(24, np.float32)}, about(), r"got float32 \[24\]"),
        ({"masks": np.zeros((1, 24), np.float16)}, about(), r"got float16 \[1, 24\]"),
        ({"masks": np.full((1, 24), np.nan, np.float32)}, about(), "not finite"),
        ({"masks": np.full((1, 24), np.inf, np.float32)}, about(), "not finite"),
        ({"masks": np.full((1, 24), 3.4e38, np.float32)}, about(), "above 1e\\+06 in size"),  # infinite in bfloat16
        ({"masks": np.zeros((1, 24), np.float32)}, about(model={"name": "a\nb", "fingerprint": "c"}), "of format 1"),
        ({"mask": np.zeros((1, 24), np.float32)}, about(), r"it holds \['mask'\]"),
        ({"masks": np.zeros((1, 24), np.float32)}, about(format=2), "of format 1"),
        ({"masks": np.zeros((1, 24), np.float32)}, about(model={"name": "a"}), "fingerprint"),
        ({"masks": np.zeros((1, 24), np.float32)}, about(model={"name": 3, "fingerprint": "a"}), "of format 1"),
        ({"masks": np.zeros((1, 24), np.float32)}, about(model=[1]), "is no file of tuned masks"),
        ({"masks": np.zeros((1, 24), np.float32)}, {"about": "[" * 100_000}, "is no file of tuned masks"),
        ({"masks": np.zeros((1, 24), np.float32)}, None, "is no file of tuned masks"),
        ({"masks": np.zeros((3, MAX_BYTES // 12), np.float32)}, about(), f"{MAX_BYTES} bytes at most"),
    ],
)
def test_what_is_no_such_file_is_refused(tensors, metadata, says, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=rf"\A[^\n]*{says}[^\n]*\Z"):
        read_masks(path)


def test_a_folder_and_a_file_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"\A[^\n]*is no file of tuned masks but a folder or a device; name a file\.\Z"
    ):
        read_masks(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_masks(tmp_path / "nothing")


@given(st.data())
def test_a_torn_or_changed_file_is_read_as_it_was_or_refused_in_one_line(tmp_path_factory, data):
    """Bytes are cut off, changed or put in; what comes of it is refused, or is of the right kind."""
    path = tmp_path_factory.mktemp("torn") / "m.safetensors"
    save_masks(tuned(), path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["cut", "change", "insert", "length"]))
    if how == "cut":
        del content[place:]
    elif how == "change":
        content[place] ^= data.draw(st.integers(1, 255))
    elif how == "insert":
        content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    else:  # the size of the header, as safetensors has it in front
        content[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    path.write_bytes(content)
    read, refusal = None, ""
    try:
        read = read_masks(path)
    except ValueError as error:
        refusal = str(error)
    if read is None:
        assert "\n" not in refusal
        assert str(path) in refusal
    else:
        assert read.masks_MD.dtype == np.float32
        assert read.masks_MD.shape[0] <= 3
        assert np.isfinite(read.masks_MD).all()


def test_families_of_one_shape_are_told_apart(tmp_path):
    """The fingerprint is of the weights and the shape: two models of one width are two models."""
    one, other = (make_checkpoint(make_tiny(FAMILIES[name])) for name in ("llama", "qwen2"))
    save_masks(tuned(one), tmp_path / "m.safetensors")
    load_masks(tmp_path / "m.safetensors", one)
    with pytest.raises(ValueError, match="was tuned for"):
        load_masks(tmp_path / "m.safetensors", other)
