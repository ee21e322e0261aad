"""Archives (PACS) to pull from: a real Orthanc on loopback, and one that answers as a test tells it to."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from helpers.federation import Started
from helpers.ports import free_port

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
HAS_ORTHANC = ORTHANC is not None and DICOMWEB.exists()
USER = ("reader", "a word of passage")
Objects = dict[tuple[str, str, str], bytes]
"""Files by the UIDs of their study, series and object."""


def an_object(study: str, series: str, sop: str | None = None, **elements: Any) -> tuple[tuple[str, str, str], bytes]:
    """A small radiograph by its UIDs, and its file."""
    dataset, meta = Dataset(), FileMetaDataset()
    dataset.file_meta, meta.TransferSyntaxUID = meta, ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", sop or generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = study, series, "DX"
    dataset.PatientID, dataset.PatientName, dataset.StudyDate = "p1", "Somebody^A", "20200131"
    dataset.Rows = dataset.Columns = 64
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = bytes(range(64)) * 64
    for name, value in elements.items():
        setattr(dataset, name, value)
    written = io.BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    return (study, series, str(dataset.SOPInstanceUID)), written.getvalue()


def pulled(out: Path) -> Objects:
    """What lies below `images` of a pull."""
    files = [path for path in (out / "images").rglob("*") if path.is_file()]
    return {(path.parent.parent.name, path.parent.name, path.stem): path.read_bytes() for path in files}


class Orthanc:
    """A real archive with a DICOMweb service, whose people log in."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.port = free_port()
        self.url = f"http://localhost:{self.port}/dicom-web"
        content = {
            "StorageDirectory": str(folder),
            "IndexDirectory": str(folder),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": dict([USER]),
            "DicomServerEnabled": False,
            "Plugins": [str(DICOMWEB)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(content))
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = Started([str(ORTHANC), str(folder / "orthanc.json")], stdout=log, stderr=log)
        while b"Orthanc has started" not in self._log.read_bytes():
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.02)

    def put(self, *files: bytes) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", auth=USER) as client:
            for file in files:
                assert client.post("/instances", content=file).json()["Status"] == "Success"

    def close(self) -> None:
        self._process.kill()  # what it holds is nobody's
        self._process.wait()


class Handler(BaseHTTPRequestHandler):
    """Answers one request; what a test puts in its place is given this."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.archive.answer(self)

    def log_message(self, *words: object) -> None:
        pass

    def give(self, body: bytes, kind: str = "application/dicom+json", status: int = 200, **headers: str) -> None:
        self.begin(kind, status, {"Content-Length": str(len(body))} | headers)
        self.wfile.write(body)

    def begin(self, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Connection": "close", **(headers or {})}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    archive: PlayedArchive
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Who asks may go away."""


Answer = Callable[[Handler], None]
MULTIPART = 'multipart/related; type="application/dicom"; boundary="here ends one"'
_ENTRY = {"study": "0020000D", "series": "0020000E", "object": "00080018"}


def whole(*files: bytes) -> bytes:
    """Objects as the body of an answer."""
    parts = [b"--here ends one\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files]
    return b"".join(parts) + b"--here ends one--\r\n"


class PlayedArchive:
    """Gives its objects as DICOMweb does, but for paths whose end has an answer of its own in `instead`."""

    def __init__(self, objects: Objects, tls: ssl.SSLContext | None = None) -> None:
        self.objects = objects
        self.instead: dict[str, list[Answer]] = {}
        """Answers by the end of a path, one after the other; the last one stays."""
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
        """Paths, keys and headers of all requests."""
        self.patients: dict[str, str] = {}
        """The number of the patient of each study, where a search says it."""
        self._server = _Server(("localhost", 0), Handler)
        self._server.archive = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"http{'s' if tls else ''}://localhost:{self._server.server_port}/web"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def paths(self, kind: str) -> list[str]:
        return [path for path, _, _ in self.asked if path.split("/")[-2] == kind]

    def answer(self, handler: Handler) -> None:
        address = urlsplit(handler.path)
        path = address.path.removeprefix("/web")
        self.asked.append((path, dict(parse_qsl(address.query)), dict(handler.headers.items())))
        for end, answers in self.instead.items():
            if path.endswith(end):
                (answers.pop(0) if len(answers) > 1 else answers[0])(handler)
                return
        self.usual(handler, path)

    def usual(self, handler: Handler, path: str) -> None:
        """What a good archive answers."""
        match path.strip("/").split("/"):
            case ["studies"]:
                found = [
                    {"0020000D": {"Value": [study]}, "00100020": {"Value": [self.patients.get(study, "")]}}
                    for study in dict.fromkeys(study for study, _, _ in self.objects)
                ]
                handler.give(json.dumps(found).encode())
            case ["studies", study, "series"]:
                handler.give(listing("series", *(key[1] for key in self.objects if key[0] == study)))
            case ["studies", study, "series", series, "instances"]:
                handler.give(listing("object", *(key[2] for key in self.objects if key[:2] == (study, series))))
            case ["studies", study, "series", series, "instances", sop]:
                handler.give(whole(self.objects[study, series, sop]), MULTIPART)
            case _:
                handler.give(b"", status=404)


def listing(level: str, *uids: str) -> bytes:
    """A search's answer with objects of these UIDs."""
    return json.dumps([{_ENTRY[level]: {"vr": "UI", "Value": [uid]}} for uid in dict.fromkeys(uids)]).encode()


@contextlib.contextmanager
def played(*objects: tuple[tuple[str, str, str], bytes], tls: ssl.SSLContext | None = None) -> Iterator[PlayedArchive]:
    """An archive of these objects, for as long as a test wants."""
    archive = PlayedArchive(dict(objects), tls)
    try:
        yield archive
    finally:
        archive.close()
