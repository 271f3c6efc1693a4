"""Camera raws in, mosaics out: patterns, what the camera recorded, damaged files, and the FITS others read."""

import os
import pickle
import resource
import struct
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest
import rawpy
import tifffile
from astropy.io import fits

from skylevel.errors import (
    OutputError,
    SettingsError,
    ShapeError,
    SkylevelError,
    UnreadableFrameError,
    UnsupportedFrameError,
)
from skylevel.io import camera
from skylevel.io.camera import open_raw, peek_raw, repeating_pattern, write_mosaic
from skylevel.io.frame import open_frame, peek_frame

DATA = Path(__file__).parents[2] / "shared" / "data" / "camera"
XTRANS = ["GGRGGB", "GGBGGR", "BRGRBG", "GGBGGR", "GGRGGB", "RBGBRG"]
FLAT, LINEAR = 32803, 34892


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real file shared/data/camera/{name} is not beside this checkout")
    return path


def mosaic(shape=(120, 180)):
    return np.random.default_rng(3).poisson(900, shape).astype("u2")


@pytest.fixture
def make_dng(tmp_path):
    def make(name="shot.dng", *, raw=None, rows=("RG", "GB"), make="SONY", model="ILCE-7S", kind=FLAT) -> Path:
        raw = mosaic() if raw is None else raw
        n = len(rows)
        tags = [
            (271, "s", 0, make, True), (272, "s", 0, model, True), (306, "s", 0, "2022:09:24 04:10:00", True),
            (33421, "H", 2, (n, n), True), (33422, "B", n * n, bytes(map("RGB".index, "".join(rows))), True),
            (50706, "B", 4, b"\1\4\0\0", True), (50708, "s", 0, f"{make} {model}", True),
            (50714, "H", 1, 512, True), (50717, "H", 1, 16383, True),
            (50721, "2i", 9, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1), True), (50778, "H", 1, 21, True),
            (33434, "2I", 1, (16, 1), True), (33437, "2I", 1, (28, 10), True), (37386, "2I", 1, (135, 1), True),
        ]  # fmt: skip
        path = tmp_path / name
        # Left to guess, tifffile's later versions write three mixed colours as a page for each row.
        tifffile.imwrite(path, raw, photometric=kind, planarconfig="contig", extratags=tags, metadata=None,
                         software=None, rowsperstrip=raw.shape[0])  # fmt: skip
        return path

    return make


class TestOpen:
    @pytest.mark.parametrize("rows", [["RG", "GB"], ["BG", "GR"], ["GR", "BG"], ["GB", "RG"], XTRANS])
    def test_pixels_and_pattern(self, make_dng, rows):
        frame = open_raw(make_dng(rows=rows))
        assert frame["raw"].dims == ("y", "x")
        assert frame["raw"].dtype == np.uint16
        np.testing.assert_array_equal(frame["raw"], mosaic())
        assert frame.attrs["color_filter_array"] == rows

    def test_attributes(self, make_dng):
        path = make_dng()
        expected = {
            "kind": "camera", "path": str(path), "unit": "ADU", "camera": "SONY ILCE-7S", "exposure_time": 16.0,
            "aperture": 2.8, "focal_length": 135.0, "date_obs": "2022-09-24T04:10:00", "black_level": 512,
            "white_level": 16383, "color_filter_array": ["RG", "GB"],
        }  # fmt: skip
        assert open_raw(path).attrs == expected

    def test_the_make_is_said_once(self, make_dng):
        assert open_raw(make_dng(make="Canon", model="Canon EOS 6D")).attrs["camera"] == "Canon EOS 6D"

    def test_unpacked_once(self, make_dng, monkeypatch):
        calls = []
        imread = rawpy.imread
        monkeypatch.setattr(rawpy, "imread", lambda path: calls.append(path) or imread(path))
        frame = open_raw(make_dng())
        frame["raw"][3:5].load()
        frame["raw"].load()
        assert len(calls) == 1

    def test_closed_after_reading(self, make_dng, monkeypatch):
        opened = []
        imread = rawpy.imread
        monkeypatch.setattr(rawpy, "imread", lambda path: opened.append(imread(path)) or opened[-1])
        frame = open_raw(make_dng())
        with pytest.raises(rawpy.LibRawError):
            opened[0].unpack()
        np.testing.assert_array_equal(frame["raw"], mosaic())

    def test_pickles_without_pixels(self, make_dng):
        packed = pickle.dumps(open_raw(make_dng()))
        assert len(packed) < mosaic().nbytes
        np.testing.assert_array_equal(pickle.loads(packed)["raw"], mosaic())

    def test_file_that_changes_after_pickling(self, make_dng):
        packed = pickle.dumps(open_raw(make_dng()))
        make_dng(raw=mosaic((60, 90)))
        with pytest.raises(UnreadableFrameError, match="changed since"):
            pickle.loads(packed)["raw"].load()

    def test_chunked(self, make_dng):
        frame = open_raw(make_dng()).chunk({"y": 50, "x": 70})
        np.testing.assert_array_equal(frame["raw"].compute(scheduler="threads"), mosaic())


class TestShot:
    def test_older_rawpy_tells_nothing(self):
        assert camera._shot(SimpleNamespace()) == {}

    def test_zeros_are_unknown(self):
        other = SimpleNamespace(iso_speed=0.0, shutter_speed=0.0, aperture=float("inf"), focal_length=float("nan"),
                                timestamp=datetime(1969, 12, 31, 19))  # fmt: skip
        assert camera._shot(SimpleNamespace(other=other)) == {}

    def test_32_bit_values_are_shown_as_recorded(self):
        other = SimpleNamespace(iso_speed=6400.0, shutter_speed=0.06666667014360428)
        assert camera._shot(SimpleNamespace(other=other)) == {"iso": 6400.0, "exposure_time": 0.06666667}

    def test_black_levels_that_differ(self):
        levels = camera._levels(SimpleNamespace(black_level_per_channel=[512, 513, 512, 512], white_level=16383))
        assert levels == {"black_level": [512, 513, 512, 512], "white_level": 16383}


class TestCameraName:
    def test_fuji(self, tmp_path):
        (tmp_path / "a.raf").write_bytes(b"FUJIFILMCCD-RAW 0201FF383501X-T2".ljust(200, b"\0"))
        assert camera._camera_name(tmp_path / "a.raf") == "FUJIFILM X-T2"

    def test_canon_cr3(self, tmp_path):
        tiff = b"MM\0*" + struct.pack(">IHHHI4s", 8, 1, 272, 2, 4, b"R6\0\0")
        (tmp_path / "a.cr3").write_bytes(b"\0\0\0\x18ftypcrx ".ljust(80, b"\0") + b"CMT1" + tiff)
        assert camera._camera_name(tmp_path / "a.cr3") == "R6"

    @pytest.mark.parametrize("content", [b"", b"II*\0", b"II*\0\xff\xff\0\0", b"nothing of the kind"])
    def test_unknown(self, tmp_path, content):
        (tmp_path / "a").write_bytes(content)
        assert camera._camera_name(tmp_path / "a") == ""


class TestPattern:
    @pytest.mark.parametrize("period", [1, 2, 4, 6, 8, 16])
    def test_smallest_period(self, period):
        tile = np.arange(period * period, dtype="u1").reshape(period, period)
        colors = np.tile(tile, (40, 50))[: 20 * period + 1, : 30 * period - 1]
        np.testing.assert_array_equal(repeating_pattern(colors), tile)

    def test_rows_alone_decide(self):
        colors = np.zeros((32, 32), "u1")
        colors[1::4] = 1
        assert repeating_pattern(colors).shape == (4, 4)
        assert repeating_pattern(colors.T).shape == (4, 4)

    @pytest.mark.parametrize("where", [(200, 3), (3, 200), (255, 255)])
    def test_one_pixel_out_of_step(self, where):
        colors = np.tile(np.array([[0, 1], [3, 2]], "u1"), (128, 128))
        colors[where] = 7
        assert repeating_pattern(colors) is None

    def test_pattern_that_repeats_in_no_way_is_refused(self):
        colors = np.random.default_rng(0).integers(0, 3, (64, 64), dtype="u1")
        raw = SimpleNamespace(color_desc=b"RGBG", raw_colors_visible=colors)
        with pytest.raises(UnsupportedFrameError, match="its colour filters"):
            camera._color_filter_array(raw, "a.dng")

    def test_monochrome_is_refused(self):
        raw = SimpleNamespace(color_desc=b"RGBG", raw_colors_visible=np.zeros((64, 64), "u1"))
        with pytest.raises(UnsupportedFrameError, match="monochrome"):
            camera._color_filter_array(raw, "a.dng")


class TestRefusals:
    def refused(self, path, kind, *words):
        with pytest.raises(kind) as caught:
            open_raw(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert "b'" not in message
        assert all(word in message for word in words), message

    def refused_when_planned(self, path):
        """The header's cause is the one that the pixels will have."""
        causes = []
        for look in (peek_raw, open_raw):
            with pytest.raises(SkylevelError) as caught:
                look(path)
            causes.append((type(caught.value), str(caught.value)))
        assert causes[0] == causes[1]

    def test_all_zeros(self, make_dng):
        self.refused(make_dng(raw=np.zeros((120, 180), "u2")), UnreadableFrameError, "no image data", "0")

    def test_linear_dng(self, make_dng):
        path = make_dng(raw=np.full((120, 180, 3), 900, "u2"), kind=LINEAR)
        self.refused(path, UnsupportedFrameError, "mosaic")
        self.refused_when_planned(path)

    def test_monochrome_dng(self, make_dng):
        path = make_dng()
        photometric = struct.Struct("<HHIH")
        mosaic_entry, linear_entry = photometric.pack(262, 3, 1, FLAT), photometric.pack(262, 3, 1, LINEAR)
        path.write_bytes(path.read_bytes().replace(mosaic_entry, linear_entry))
        self.refused(path, UnsupportedFrameError, "monochrome")

    def test_cut_short(self, make_dng):
        path = make_dng()
        path.write_bytes(path.read_bytes()[:20000])
        self.refused(path, UnreadableFrameError, "cut short", "LibRaw")

    def test_pixels_that_are_not_there(self):
        raw = SimpleNamespace(raw_image_visible=np.ones((3, 0), "u2"), sizes=SimpleNamespace(height=3, width=0))
        with pytest.raises(UnreadableFrameError, match="damaged"):
            camera._visible(raw, __file__)

    def test_fewer_pixels_than_declared(self):
        raw = SimpleNamespace(raw_image_visible=np.ones((3, 4), "u2"), sizes=SimpleNamespace(height=5, width=4))
        with pytest.raises(UnreadableFrameError, match="damaged"):
            camera._visible(raw, __file__)

    @pytest.mark.parametrize(
        ("name", "kind", "word"),
        [
            ("exiftool_CanonRaw.cr2", UnsupportedFrameError, "Unsupported file format"),
            ("exiftool_DNG.dng", UnreadableFrameError, "no image data"),
            ("imageio_Nikon_uncompressed.nef", UnsupportedFrameError, "mosaic"),
            ("mei_issue247_1.nef", UnreadableFrameError, "Input/output error"),
        ],
    )
    def test_real_files(self, name, kind, word):
        self.refused(real(name), kind, word)
        self.refused_when_planned(real(name))

    def test_memory_left_by_others_is_not_taken_for_pixels(self):
        """LibRaw leaves unfilled pixels as its memory was; here that memory has been used before."""
        path = real("exiftool_DNG.dng")
        for _ in range(3):
            np.ones((2328, 3516), "u2").sum()
            self.refused(path, UnreadableFrameError, "no image data")


class TestRealFiles:
    def test_blackmagic(self):
        path = real("imageio_Blackmagic.dng")
        frame = open_raw(path)
        assert frame["raw"].shape == (2176, 4128)
        assert frame.attrs["color_filter_array"] == ["RG", "GB"]
        assert frame.attrs["black_level"] == 512
        assert not {"iso", "exposure_time", "date_obs"} & set(frame.attrs)
        with rawpy.imread(str(path)) as raw:
            np.testing.assert_array_equal(frame["raw"], raw.raw_image_visible)

    def test_kodak(self):
        frame = open_raw(real("rawpy_RAW_KODAK_DC50.KDC"))
        assert frame.attrs["color_filter_array"] == ["GR", "BG"]
        assert (frame.attrs["iso"], frame.attrs["aperture"], frame.attrs["focal_length"]) == (84.0, 6.2, 37.0)
        assert frame.attrs["date_obs"] == "1997-04-23T08:00:47"
        assert frame.attrs["camera"].startswith("Eastman Kodak")

    def test_long_camera_name_fits_its_card(self, tmp_path):
        frame = open_raw(real("rawpy_RAW_KODAK_DC50.KDC"))
        write_mosaic(tmp_path / "k.fits", frame, frame["raw"].to_numpy().astype("f4"))
        assert fits.getheader(tmp_path / "k.fits", 1)["INSTRUME"] == frame.attrs["camera"]


class TestWrite:
    def write(self, path, tmp_path, name="shot.bkg_subtracted.fits", **options):
        frame = open_raw(path)
        levelled = frame["raw"].to_numpy().astype("f8") - 905.25
        write_mosaic(tmp_path / name, frame, levelled, **options)
        return tmp_path / name, levelled

    def test_notebooks_readers(self, make_dng, tmp_path):
        """They take extension 1, and values below 0 with it."""
        output, levelled = self.write(make_dng(), tmp_path)
        with fits.open(output) as hdus:
            assert len(hdus) == 2
            assert hdus[0].data is None
            assert hdus[0].header["PATH"] == "shot.bkg_subtracted.fits"
            assert datetime.fromisoformat(hdus[0].header["DATE"])
            hdus.verify("exception")
            assert hdus[1].data.dtype == ">f4"
            assert hdus[1].data.min() < 0
            np.testing.assert_array_equal(hdus[1].data, levelled.astype("f4"))

    @pytest.mark.parametrize("layout", ["full", "primary"])
    def test_cards_stand_with_the_image(self, make_dng, tmp_path, layout):
        output, levelled = self.write(
            make_dng(), tmp_path, layout=layout, cards=[("SKYBOX", 100, "box")], history=["levelled"]
        )
        with fits.open(output, checksum=True) as hdus:
            assert len(hdus) == {"full": 2, "primary": 1}[layout]
            header = hdus[-1].header
            expected = {
                "BAYERPAT": "RGGB", "ROWORDER": "TOP-DOWN", "XBAYROFF": 0, "YBAYROFF": 0, "EXPTIME": 16.0,
                "EXPOSURE": 16.0, "DATE-OBS": "2022-09-24T04:10:00", "INSTRUME": "SONY ILCE-7S", "FOCALLEN": 135.0,
                "APERTURE": 2.8, "PROGRAM": f"skylevel {version('skylevel')}", "SKYBOX": 100,
            }  # fmt: skip
            assert {key: header[key] for key in expected} == expected
            assert "ISOSPEED" not in header
            assert datetime.fromisoformat(header["DATE"])
            assert list(header["HISTORY"]) == ["levelled"]
            np.testing.assert_array_equal(hdus[-1].data, levelled.astype("f4"))
            hdus.verify("exception")
            assert all(hdu.verify_checksum() == 1 and hdu.verify_datasum() == 1 for hdu in hdus)

    def test_xtrans_pattern(self, make_dng, tmp_path):
        output, _ = self.write(make_dng(rows=XTRANS), tmp_path)
        assert fits.getheader(output, 1)["BAYERPAT"] == "".join(XTRANS)

    def test_names_outside_ascii(self, make_dng, tmp_path):
        output, _ = self.write(make_dng(), tmp_path, "Å" * 30 + "ndromeda.fits")
        assert fits.getheader(output)["PATH"] == "?" * 30 + "ndromeda.fits"

    def test_refusals(self, make_dng, tmp_path):
        path = make_dng()
        frame, output = open_raw(path), tmp_path / "a.fits"
        with pytest.raises(ShapeError, match="compute it first"):
            write_mosaic(output, frame, da.zeros((120, 180)))
        with pytest.raises(ShapeError, match="shape"):
            write_mosaic(output, frame, np.zeros((60, 90), "f4"))
        with pytest.raises(SettingsError, match="layout"):
            write_mosaic(output, frame, np.zeros((120, 180), "f4"), layout="both")
        with pytest.raises(SettingsError, match="itself"):
            write_mosaic(path, frame, np.zeros((120, 180), "f4"))
        assert list(tmp_path.iterdir()) == [path]

    def test_failure_leaves_what_stood_there(self, make_dng, tmp_path, monkeypatch):
        path = make_dng()
        (tmp_path / "a.fits").write_bytes(b"before")

        def interrupted(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(camera, "write_hdu", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.write(path, tmp_path, "a.fits")
        assert (tmp_path / "a.fits").read_bytes() == b"before"
        assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "a.fits"])


def changed_tag(path: Path, tag: int, code: str, value: int) -> Path:
    """Set the value of a TIFF tag in the first directory."""
    content = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, offset)
    entries = range(offset + 2, offset + 2 + 12 * count, 12)
    (entry,) = [at for at in entries if struct.unpack_from("<H", content, at)[0] == tag]
    struct.pack_into("<" + code, content, entry + 8, value)
    path.write_bytes(content)
    return path


@pytest.mark.packages
class TestMemoryThatLibRawLeavesUnwritten:
    @pytest.fixture
    def noise_as_jpeg(self, make_dng):
        """Compression 7 says lossless JPEG; the pixels are none."""
        return changed_tag(make_dng(), 259, "H", 7)

    @pytest.mark.parametrize("perturb", ["", "0", "10", "85", "170"])
    def test_refused_whatever_the_memory_holds(self, noise_as_jpeg, perturb):
        program = (
            "import sys; from skylevel.io.camera import open_raw; from skylevel.errors import UnreadableFrameError\n"
            "try: open_raw(sys.argv[1]); print('opened')\n"
            "except UnreadableFrameError as error: print(error)"
        )
        environment = os.environ | ({"MALLOC_PERTURB_": perturb} if perturb else {})
        command = [sys.executable, "-c", program, str(noise_as_jpeg)]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert said.startswith(f"{noise_as_jpeg}: is damaged: LibRaw finds no data for 21600 of its pixels")

    def test_part_of_the_pixels(self, make_dng, monkeypatch):
        """Where only the end is unwritten, the rest may hold the number that the memory was filled with."""
        decoded = camera._decoded

        def half(path):
            pixels, attrs = decoded(path)
            pixels[-3:] = fills.pop(0)
            return pixels, attrs

        fills = [0xF5F5, 0xCACA]
        monkeypatch.setattr(camera, "_decoded", half)
        with pytest.raises(UnreadableFrameError, match="no data for 540 of its pixels"):
            open_raw(make_dng())

    def test_a_sound_raw_may_hold_that_number(self, make_dng):
        pixels = mosaic()
        pixels[5:9, 7] = 0xF5F5
        np.testing.assert_array_equal(open_raw(make_dng(raw=pixels))["raw"], pixels)

    def test_memory_is_left_as_it_was(self, make_dng):
        open_raw(make_dng())
        assert np.frombuffer(bytes(1 << 20), "u1").max() == 0

    def test_when_it_arrives_elsewhere(self, make_dng):
        path = make_dng()
        packed = pickle.dumps(open_raw(path))
        changed_tag(path, 259, "H", 7)
        with pytest.raises(UnreadableFrameError, match="no data"):
            pickle.loads(packed)["raw"].load()


class TestLies:
    @pytest.mark.parametrize(("width", "height"), [(40000, 35000), (65535, 65535), (60000, 3000)])
    def test_more_pixels_than_the_file_can_hold(self, make_dng, width, height):
        path = changed_tag(changed_tag(make_dng(), 256, "I", width), 257, "I", height)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for read in (open_raw, peek_raw):
            with pytest.raises(SkylevelError, match=r"no image data|LibRaw"):
                read(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


class TestNames:
    @pytest.mark.parametrize("name", ["caf\udce9.dng", "a\x1b[2J.dng", "a b::c.dng", "\n.dng", ".dng"])
    def test_odd_names_open(self, make_dng, tmp_path, name):
        path = tmp_path / name
        make_dng().rename(path)
        np.testing.assert_array_equal(open_frame(path)["raw"], mosaic())
        assert peek_frame(path)[0] == (120, 180)

    def test_what_a_camera_calls_itself_is_harmless(self, make_dng):
        name = open_raw(make_dng(make="EV\x1b]0;IL\x07", model="\x1b[2J")).attrs["camera"]
        assert name.isprintable()
        assert "\x1b" not in name


def colour_fits(path: Path, image=None, *, extension=False, packed=False, **cards) -> Path:
    """A mosaic as capture programs write it: unsigned 16 bits and BAYERPAT in the primary header."""
    image = mosaic() if image is None else image
    known = {"BAYERPAT": "RGGB", "INSTRUME": "ZWO ASI2600MC Pro", "EXPTIME": 300.0, "FOCALLEN": 530, "GAIN": 100,
             "DATE-OBS": "2024-08-12T23:01:02.003", "OBJECT": "M 31", "CCD-TEMP": -10.0, "FILTER": "L"}  # fmt: skip
    header = fits.Header({**known, **cards})
    if packed:
        hdus = [fits.PrimaryHDU(), fits.CompImageHDU(image, header, compression_type="RICE_1")]
    elif extension:
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, header)]
    else:
        hdus = [fits.PrimaryHDU(image, header)]
    fits.HDUList(hdus).writeto(path)
    return path


class TestColourFilterFits:
    @pytest.mark.parametrize("kind", [{}, {"extension": True}, {"packed": True}])
    def test_opens_as_a_camera_frame(self, tmp_path, kind):
        path = colour_fits(tmp_path / "Light_M31.fits", **kind)
        frame = open_frame(path)
        assert (frame["raw"].dtype, frame["raw"].dims) == (np.uint16, ("y", "x"))
        np.testing.assert_array_equal(frame["raw"], mosaic())
        wcs = frame.attrs.pop("wcs")
        assert "BAYERPAT" in wcs
        assert frame.attrs == {
            "kind": "camera", "path": str(path), "unit": "ADU", "color_filter_array": ["RG", "GB"],
            "camera": "ZWO ASI2600MC Pro", "exposure_time": 300.0, "focal_length": 530.0,
            "date_obs": "2024-08-12T23:01:02.003", "sci_extension": 0 if not kind else 1,
        }  # fmt: skip
        shape, facts = peek_frame(path)
        assert (shape, facts["kind"], facts["camera"]) == ((120, 180), "camera", "ZWO ASI2600MC Pro")
        assert facts.pop("dtype") == open_frame(path)["raw"].dtype.name
        assert facts.items() <= open_frame(path).attrs.items()

    @pytest.mark.parametrize(
        ("image", "dtype"),
        [
            (mosaic(), np.uint16),
            ((mosaic() // 8).astype("u1"), np.uint16),
            (mosaic().astype("i2"), np.float32),
            (mosaic().astype("i4"), np.float32),
            ((mosaic() / 65535).astype("f4"), np.float32),
            ((mosaic() / 65535).astype("f8"), np.float32),
        ],
    )
    def test_pixels_of_any_type(self, tmp_path, image, dtype):
        frame = open_frame(colour_fits(tmp_path / "a.fits", image))
        assert frame["raw"].dtype == dtype
        np.testing.assert_array_equal(frame["raw"], image.astype(dtype))
        np.testing.assert_array_equal(frame["raw"].chunk(50).compute(scheduler="threads"), image.astype(dtype))

    @pytest.mark.parametrize("pattern", [["RG", "GB"], ["GB", "RG"], XTRANS, ["RGBW", "GBWR", "BWRG", "WRGB"]])
    @pytest.mark.parametrize("order", ["TOP-DOWN", "BOTTOM-UP", None])
    @pytest.mark.parametrize(("x", "y"), [(0, 0), (1, 0), (0, 1), (3, 1), (-1, 2)])
    @pytest.mark.parametrize("height", [120, 121])
    def test_every_pixel_has_its_colour(self, tmp_path, pattern, order, x, y, height):
        """A picture whose pixels are their colours' numbers, stored as the cards say."""
        top_down = np.array([[ord(pattern[(r + y) % len(pattern)][(c + x) % len(pattern)]) for c in range(30)]
                             for r in range(height)], "u2")  # fmt: skip
        stored = top_down[::-1] if order == "BOTTOM-UP" else top_down
        cards = {"BAYERPAT": "".join(pattern), "XBAYROFF": x, "YBAYROFF": y} | ({"ROWORDER": order} if order else {})
        frame = open_frame(colour_fits(tmp_path / "a.fits", stored, **cards))
        found = frame.attrs["color_filter_array"]
        n = len(found)
        expected = [[ord(found[r % n][c % n]) for c in range(30)] for r in range(height)]
        np.testing.assert_array_equal(frame["raw"], expected)

    @pytest.mark.parametrize("value", ["", "NONE", "MONO", "GREY"])
    def test_monochrome_is_no_mosaic(self, tmp_path, value):
        assert open_frame(colour_fits(tmp_path / "a.fits", BAYERPAT=value)).attrs["kind"] == "jwst"

    @pytest.mark.parametrize(
        "cards",
        [{"BAYERPAT": "RGGX"}, {"BAYERPAT": "RGB"}, {"BAYERPAT": "GGGG"}, {"BAYERPAT": "RG" * 300}, {"BAYERPAT": 5},
         {"BAYERPAT": "../.."}, {"XBAYROFF": 0.5}, {"YBAYROFF": "one"}, {"XBAYROFF": 1e300}],
    )  # fmt: skip
    def test_no_pattern(self, tmp_path, cards):
        path = colour_fits(tmp_path / "a.fits", **cards)
        if cards.get("XBAYROFF") == 1e300:
            assert open_frame(path).attrs["color_filter_array"] == ["RG", "GB"]
            return
        for read in (open_frame, peek_frame):
            with pytest.raises(UnsupportedFrameError, match=next(iter(cards))):
                read(path)

    def test_no_zero_point(self, tmp_path):
        with pytest.raises(SettingsError, match="zero_point"):
            open_frame(colour_fits(tmp_path / "a.fits"), zero_point=2.0)

    @pytest.mark.parametrize("layout", ["full", "primary"])
    @pytest.mark.parametrize("kind", [{}, {"extension": True}, {"packed": True}])
    def test_written_with_all_its_cards(self, tmp_path, layout, kind):
        path = colour_fits(tmp_path / "a.fits", ROWORDER="BOTTOM-UP", YBAYROFF=1, CRVAL1=10.5, **kind)
        frame = open_frame(path)
        levelled = frame["raw"].to_numpy().astype("f8") - 905.25
        output = tmp_path / "a.bkg_subtracted.fits"
        write_mosaic(output, frame, levelled, cards=[("SKYLEVEL", "9.9", "version")], history=["h"], layout=layout)
        with fits.open(output, checksum=True) as hdus:
            hdus.verify("exception")
            assert len(hdus) == {"full": 2, "primary": 1}[layout]
            assert all(hdu.verify_checksum() == 1 and hdu.verify_datasum() == 1 for hdu in hdus)
            header = hdus[-1].header
            assert (hdus[-1].data.dtype, "BZERO" in header) == (">f4", False)
            np.testing.assert_array_equal(hdus[-1].data, levelled.astype("f4"))
            expected = {
                "BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP", "YBAYROFF": 1, "OBJECT": "M 31", "CCD-TEMP": -10.0,
                "CRVAL1": 10.5, "EXPTIME": 300.0, "SKYLEVEL": "9.9", "PROGRAM": f"skylevel {version('skylevel')}",
            }  # fmt: skip
            assert {key: header[key] for key in expected} == expected
            assert datetime.fromisoformat(header["DATE"])
            assert hdus[0].header["PATH"] == output.name
        again = open_frame(output)
        assert again.attrs["kind"] == "camera"
        assert again.attrs["levelled_by"] == peek_frame(output)[1]["levelled_by"] == "skylevel 9.9"
        assert again.attrs["color_filter_array"] == frame.attrs["color_filter_array"]
        assert again["raw"].dtype == np.float32

    def test_our_own_output_of_a_raw_opens(self, make_dng, tmp_path):
        frame = open_raw(make_dng())
        write_mosaic(tmp_path / "o.fits", frame, mosaic() - 900.5, cards=[("SKYLEVEL", "9.9", "version")])
        again = open_frame(tmp_path / "o.fits")
        assert (again.attrs["kind"], again.attrs["levelled_by"]) == ("camera", "skylevel 9.9")
        assert again.attrs["color_filter_array"] == frame.attrs["color_filter_array"]
        np.testing.assert_array_equal(again["raw"], (mosaic() - 900.5).astype("f4"))

    def test_source_that_changed(self, tmp_path):
        path = colour_fits(tmp_path / "a.fits")
        frame = open_frame(path).load()
        path.unlink()
        colour_fits(path, mosaic((60, 90)))
        with pytest.raises(ShapeError, match="changed since"):
            write_mosaic(tmp_path / "o.fits", frame, np.zeros((120, 180), "f4"))


def test_pixels_that_overflow_are_an_error(make_dng, tmp_path):
    frame = open_raw(make_dng())
    with pytest.raises(OutputError, match="21600 finite pixels"):
        write_mosaic(tmp_path / "o.fits", frame, np.full((120, 180), 2e39))
    assert not (tmp_path / "o.fits").exists()
