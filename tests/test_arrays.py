"""The verbs in which the methods are written, for NumPy and Dask arrays alike."""

import dask.array as da
import numpy as np
import pytest
from distributed import Client

from scenes import make_frame, make_scene
from skylevel.level import level_rows
from skylevel.level.arrays import read_separately

IMAGE = np.random.default_rng(2).normal(100, 5, (60, 70))

MADE_BY = {
    "an array in memory": lambda: da.from_array(IMAGE, chunks=(20, 30)),
    "a random generator": lambda: da.random.default_rng(3).normal(100, 5, (60, 70), chunks=(20, 30)),
    "arithmetic": lambda: (da.from_array(IMAGE, chunks=(20, 30)) + 1).astype(np.float32).T,
    "slices": lambda: da.from_array(IMAGE, chunks=25)[3:50:2, ::-1],
    "a stack": lambda: da.stack([da.ones((60, 70), chunks=30), da.from_array(IMAGE, chunks=30)])[1] * 2,
    "other chunks": lambda: da.from_array(IMAGE, chunks=25).rechunk((11, 70)),
}


@pytest.mark.parametrize("made_by", MADE_BY)
def test_an_image_that_is_read_again_is_the_same_and_no_task_is_shared(made_by):
    image = MADE_BY[made_by]()
    again = read_separately(image)
    assert (again.shape, again.dtype, again.chunks) == (image.shape, image.dtype, image.chunks)
    assert not again.dask.keys() & image.dask.keys()
    # Both in one graph, where Dask fuses tasks.
    joined = da.concatenate([again[1:], image[:1]])
    np.testing.assert_array_equal(joined.compute(), np.concatenate([image[1:].compute(), image[:1].compute()]))


def test_what_a_cluster_holds_is_not_read_again():
    frame = make_frame(make_scene("sparse", 300).image, err=False, dq=False)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"):
        held = frame.chunk(y=90, x=110).persist()
        assert read_separately(held.sci.data) is held.sci.data
        for image in (held, held.assign(sci=held.sci + 0)):
            np.testing.assert_array_equal(level_rows(image).sci.compute(), level_rows(frame).sci)
