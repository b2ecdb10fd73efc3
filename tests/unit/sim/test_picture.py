"""Simulated pictures."""

import numpy as np
import pytest

from tango_stddaq.sim.picture import DiffractionPicture


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4"])
def test_a_picture_is_a_pure_function_of_its_id(dtype: str) -> None:
    picture = DiffractionPicture((200, 300), np.dtype(dtype))
    first = picture.image(7).copy()
    picture.image(8)[:] = 0
    assert np.array_equal(picture.image(7), first)
    assert np.array_equal(DiffractionPicture((200, 300), np.dtype(dtype)).image(7), first)
    assert (first.shape, first.dtype) == ((200, 300), np.dtype(dtype))


def test_neighbours_differ_even_where_spots_and_digits_have_no_room() -> None:
    picture = DiffractionPicture((4, 4), np.dtype("u1"))
    images = [picture.image(image_id).tobytes() for image_id in range(100, 351)]
    assert len(set(images)) == 251


@pytest.mark.parametrize(("dtype", "scale"), [("u1", 1), ("<u2", 10)])
def test_spots_are_brighter_than_digits_and_these_than_rings(dtype: str, scale: int) -> None:
    image = DiffractionPicture((400, 400), np.dtype(dtype)).image(12345)
    assert image.max() == 240 * scale
    assert np.count_nonzero(image == 200 * scale) > 100
    assert np.median(image) < 40 * scale


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("image_id", [0, 2**64 - 1])
def test_any_shape_and_id_gives_a_picture(shape: tuple[int, int], image_id: int) -> None:
    image = DiffractionPicture(shape, np.dtype("<u2")).image(image_id)
    assert image.shape == shape
    assert image[0, 0] == image_id % 251
