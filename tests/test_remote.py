"""Files by URL: what is fetched and sent, how a signed URL is named, and that nothing gives its secrets away."""

import errno
import os
import pickle
import subprocess
import sys
import threading
import traceback
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from skylevel.errors import OutputError, SettingsError, ShapeError, UnreadableFrameError
from skylevel.io.remote import file_system, local_input, local_output, output_size
from skylevel.io.urls import public_url, url_name, without_secrets

SECRET = "AKIAsecretSECRET0123"
SIGNED = [
    f"https://host/data/jw01_cal.fits?X-Amz-Algorithm=AWS4&X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"https://account.blob.core.windows.net/box/jw01_cal.fits?sv=2024&se=2030&sig={SECRET}%2F%3D",
    f"https://storage.googleapis.com/box/jw01_cal.fits?X-Goog-Signature={SECRET}&X-Goog-Credential={SECRET}",
    f"https://host/jw01_cal.fits?token={SECRET}",
    f"https://host/jw01_cal.fits?any-new-name={SECRET}",
    f"https://user:{SECRET}@host:8443/jw01_cal.fits",
    f"https://{SECRET}@host/jw01_cal.fits#access_token={SECRET}",
    f"s3://key:{SECRET}@box/a/jw01_cal.fits",
    f"simplecache::https://user:{SECRET}@host/jw01_cal.fits?sig={SECRET}",
    f"ftp://user:p@{SECRET}@host/jw01_cal.fits",
]


class TestPublic:
    @pytest.mark.parametrize("url", SIGNED)
    def test_nothing_secret_is_left(self, url):
        shown = public_url(url)
        assert SECRET not in shown
        assert "user" not in shown
        assert shown.endswith("jw01_cal.fits")
        assert public_url(shown) == shown

    @pytest.mark.parametrize(
        "url",
        ["/data/a@b?c.fits", "data/user:x@y.fits", "s3://box/a.fits", "https://host:8/a.fits", "a::b", "memory://a"],
    )
    def test_what_is_public_stays(self, url):
        assert public_url(url) == url

    def test_an_archives_address_stays(self):
        url = "https://mast.stsci.edu/api/v0.1/Download/file?uri=mast:JWST/product/jw01_cal.fits"
        assert public_url(url) == url
        assert public_url(f"{url}&token={SECRET}") == url

    @pytest.mark.parametrize("url", SIGNED)
    def test_names(self, url):
        assert url_name(url) == "jw01_cal.fits"

    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("https://mast.stsci.edu/api/v0.1/Download/file?uri=mast:JWST/product/jw01_cal.fits", "jw01_cal.fits"),
            ("https://host/a%20b.fits", "a b.fits"),
            ("https://host", ""),
            ("https://host/", ""),
            ("https://host/..", ".."),
            ("https://host/a%2F..%2Fb.fits", "a/../b.fits"),
            ("/data/a?b.fits", "a?b.fits"),
        ],
    )
    def test_names_of_others(self, url, name):
        assert url_name(url) == name

    def test_messages_that_repeat_a_part(self):
        assert without_secrets(f"no key {SECRET}", SIGNED[0]) == "no key ..."

    @pytest.mark.parametrize("url", SIGNED)
    def test_messages(self, url):
        said = without_secrets(f"403, message='Forbidden', url=URL('{url}')\n \x1b[2J", url)
        assert SECRET not in said
        assert said.isprintable()
        assert "Forbidden" in said


@pytest.fixture
def server():
    """Answers every request with 403 and the request itself, as careless servers do; counts nothing, keeps nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(403, "Forbidden")
            self.end_headers()
            self.wfile.write(self.path.encode())

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=partial(http.serve_forever, poll_interval=0.05))
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def said_by(error: BaseException) -> str:
    """All that a log could hold of an error."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__)


class TestErrors:
    def test_a_refused_download_gives_nothing_away(self, server):
        url = f"http://user:{SECRET}@{server}/jw01_cal.fits?X-Amz-Signature={SECRET}"
        with pytest.raises(UnreadableFrameError, match="cannot be fetched") as caught, local_input(url):
            pass
        shown = said_by(caught.value).replace(f'url = f"http://user:{SECRET}', "")
        assert SECRET not in shown
        assert str(caught.value).startswith(f"http://{server}/jw01_cal.fits: ")
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_a_server_that_is_not_there_may_be_tried_again(self):
        with (
            pytest.raises(UnreadableFrameError) as caught,
            local_input(f"http://u:{SECRET}@127.0.0.1:9/a.fits?sig={SECRET}"),
        ):
            pass
        assert SECRET not in said_by(caught.value)
        assert caught.value.__cause__.errno == errno.ECONNREFUSED

    def test_an_upload_that_fails(self, monkeypatch):
        url = f"memory://user:{SECRET}@box/o.fits?sig={SECRET}"

        def refused(self, *args, **kwargs):
            raise PermissionError(errno.EACCES, f"no: {url}")

        monkeypatch.setattr(MemoryFileSystem, "put_file", refused)
        with pytest.raises(OutputError, match="cannot be sent") as caught, local_output(url) as path:
            path.write_bytes(b"x")
        assert SECRET not in str(caught.value)
        assert SECRET not in str(caught.value.__cause__)
        assert caught.value.__cause__.errno == errno.EACCES

    def test_unknown_protocol(self):
        with pytest.raises(SettingsError, match="Protocol not known") as caught:
            file_system(f"nosuch://u:{SECRET}@host/a")
        assert SECRET not in said_by(caught.value)

    @pytest.mark.parametrize(
        ("module", "url", "package"),
        [("aiohttp", "https://h/a.fits", "aiohttp"), ("s3fs", "s3://b/a", "s3fs")],
    )
    def test_a_package_that_is_missing_is_named(self, module, url, package):
        program = (
            f"import sys; sys.modules['{module}'] = None\n"
            "from skylevel.io.remote import local_input\n"
            f"try:\n with local_input('{url}'): pass\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert said.startswith(f"SettingsError {url}: ")
        assert f"pip install '{package}'" in said


class TestFiles:
    def test_fetched_and_named_by_its_url(self):
        fsspec.filesystem("memory").pipe("/box/a.fits", b"content")
        with local_input("memory://box/a.fits") as path:
            assert (path.name, path.read_bytes()) == ("a.fits", b"content")
        with (
            pytest.raises(ShapeError, match=r"memory://box/a\.fits: wrong"),
            local_input("memory://box/a.fits") as path,
        ):
            raise ShapeError(f"{path}: wrong")
        assert not path.exists()

    def test_a_name_that_would_lead_elsewhere(self, monkeypatch):
        """A server names the file; here it would be written beside the folder made for it."""
        monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *paths: Path(paths[-1]).write_bytes(b"x"))
        with local_input("memory://box/x%2F..%2F..%2F..%2Fstray.fits") as path:
            assert path.read_bytes() == b"x"
            assert path.parent.name.startswith("skylevel-")
            assert path.parent == Path(os.path.normpath(path)).parent

    def test_what_is_not_there(self):
        with pytest.raises(UnreadableFrameError, match="no such file"), local_input("memory://box/none.fits"):
            pass

    def test_sent_when_whole(self):
        with local_output("memory://out/o.fits") as path:
            path.write_bytes(b"levelled")
            assert output_size("memory://out/o.fits") is None
        assert fsspec.filesystem("memory").cat("/out/o.fits") == b"levelled"
        assert output_size("memory://out/o.fits") == len(b"levelled")

    @pytest.mark.parametrize("name", ["a.zarr", "a::b", "memory::a", "a/../b", "a b", "b/"])
    def test_the_local_file_system(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        files, path = file_system(name)
        assert (type(files).__name__, path) == ("LocalFileSystem", os.path.normpath(tmp_path / name))
        assert file_system(str(tmp_path / name))[1] == path

    def test_a_name_that_looks_like_a_chain(self, tmp_path):
        with local_output(str(tmp_path / "a::b.fits")) as path:
            assert output_size(str(path)) is None
            path.write_bytes(b"x")
        assert output_size(str(tmp_path / "a::b.fits")) == 1
        with local_input(str(path)) as found:
            assert found.read_bytes() == b"x"
