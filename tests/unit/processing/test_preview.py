"""Small pictures of large images."""

import numpy as np
import pytest

from tango_stddaq.processing.preview import decimate, to_gray


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((514, 1030), (172, 344)), ((512, 512), (512, 512)), ((513, 10), (257, 5)), ((1, 1), (1, 1)),
        ((1, 2000), (1, 500)), ((2000, 3), (500, 1)), ((3106, 3264), (444, 467)),
    ],
)  # fmt: skip
def test_the_longest_side_fits_with_the_smallest_whole_factor(
    shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    small = decimate(np.zeros(shape, np.uint16))
    assert (small.shape, small.dtype) == (expected, np.float32)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (100, 517), (513, 0), (0, 1029), (513, 1029)])
def test_a_peak_of_one_pixel_stays_visible_up_to_the_edge(y: int, x: int) -> None:
    image = np.zeros((514, 1030), np.uint32)
    image[y, x] = 60_000
    small = decimate(image)
    assert small.max() == small[y // 3, x // 3] == 60_000
    assert np.count_nonzero(small) == 1


def test_the_image_itself_is_not_changed_or_shared() -> None:
    image = np.ones((4, 4), np.float32)
    decimate(image)[:] = 5
    assert image.max() == 1


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<i4", "<f4"])
def test_gray_is_a_logarithmic_scale_from_black_to_white(dtype: str) -> None:
    image = np.geomspace(1, 120, 4096).reshape(64, 64).astype(dtype)
    gray = to_gray(image)
    assert (gray.shape, gray.dtype) == ((64, 64), np.uint8)
    assert (gray.min(), gray.max()) == (0, 255)
    assert np.all(np.diff(gray.reshape(-1).astype(int)) >= 0)
    assert 90 < gray[32, 0] < 140  # 11 of 120: a linear scale would give 21


def test_a_flat_image_is_black() -> None:
    assert not to_gray(np.full((5, 5), 7, np.uint16)).any()


def test_one_bright_pixel_in_darkness_shows() -> None:
    image = np.zeros((100, 100), np.uint16)
    image[3, 4] = 1000
    assert np.argwhere(to_gray(image) == 255).tolist() == [[3, 4]]


def test_invalid_and_negative_pixels_are_dark() -> None:
    image = np.array([[np.nan, -5.0], [0.0, 100.0]], np.float32)
    assert to_gray(image).tolist()[0] == [0, 0]
