"""examples/server.py, a process of its own: right answers in batches, what it refuses, and its end."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("pyarrow")

from faces.embedder import Embedder
from faces.embeddings import Embeddings, Origin, encode_embeddings
from faces.threshold import Threshold
from reference import load
from tests.examples.conftest import EXAMPLES, import_example
from tests.faces.align.conftest import ONE, ColourDetector, picture
from tests.faces.conftest import load_once

pytestmark = pytest.mark.slow

BATCH, WAITING, MOST_BYTES, ARRIVAL = 4, 6, 200_000, 1.5
OPTIONS = ("--port", "0", "--max-batch", BATCH, "--max-delay", "100", "--max-waiting", WAITING,
           "--max-bytes", MOST_BYTES, "--arrival", ARRIVAL)  # fmt: skip
TOLERANCE = 1e-5


def encode(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png_head(side):
    """Encode the head of a PNG whose pixels are missing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (head, b"IDAT" + zlib.compress(bytes(100)))
    encoded = (
        struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)


@pytest.fixture(scope="session")
def crops():
    """Crops of six people: (6, 160, 160, 3)."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    return colours.repeat(40, axis=1).repeat(40, axis=2)


@pytest.fixture(scope="session")
def rows(single_files, crops):
    """Their embeddings one by one, by PyTorch alone."""
    network = load(single_files / "weights.pt")
    with torch.inference_mode():
        images = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() - 127.5) / 128
        rows = torch.cat([network(image[None]) for image in images]).numpy()
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=2) + 4 * np.eye(6)
    assert apart.min() > 100 * TOLERANCE  # the embedding of another request would be noticed
    return rows


@pytest.fixture(scope="session")
def gallery(single_files, rows, tmp_path_factory):
    """The first three people, with a threshold between a person and the others."""
    path = single_files / "weights.pt"
    sha256 = load_once(path, standardisation="fixed").sha256
    threshold = Threshold(1e-6, 0.01, "squared-euclidean", False, False, str(path), sha256, "fixed", "scaled",
                          9, 6, "pairs.txt")  # fmt: skip
    names = ("Ana", "Bo", "Cy")
    files = tuple(Path(f"{name}.png") for name in names)
    origin = Origin(str(path), sha256, "fixed", "scaled", threshold)
    file = tmp_path_factory.mktemp("gallery") / "gallery.parquet"
    file.write_bytes(encode_embeddings(Embeddings(files, names, (None,) * 3, rows[:3], origin), file.parent))
    return file


@pytest.fixture(scope="module")
def started(gallery):
    """The address of a server and its process, which the last test ends."""
    command = [sys.executable, EXAMPLES / "server.py", "--gallery", gallery, *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        line = process.stdout.readline()
        address = re.match(r"(http://127\.0\.0\.1:\d+) embeds \d+ images/s", line)
        assert address, line + process.stdout.read()
        yield address[1], process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(started):
    return started[0]


def post(address, bodies, path="embed"):
    """Post all bodies at the same time; return the responses."""

    async def run():
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:
            requests = (client.post(f"{address}/{path}", content=body) for body in bodies)
            return await asyncio.gather(*requests)

    return asyncio.run(run())


def metrics(address):
    text = httpx2.get(f"{address}/metrics", trust_env=False).text
    return {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE)}


def connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def statuses(connection):
    """Read to the end of a connection, and return the statuses of all answers."""
    answers = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answers)]


def request(body, size=None):
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) if size is None else size}\r\n\r\n"
    return head.encode() + body


def test_requests_that_wait_are_one_batch_and_each_gets_its_own_answer(server, crops, rows):
    before = metrics(server)
    bodies = [encode(crop) for crop in crops]
    responses = post(server, bodies)
    assert [response.status_code for response in responses] == [200] * 6
    actual = np.array([response.json()["embedding"] for response in responses])
    assert np.linalg.norm(actual - rows, axis=1).max() < TOLERANCE
    after = metrics(server)
    assert after["facenet_images_total"] - before["facenet_images_total"] == 6
    assert after["facenet_batches_total"] - before["facenet_batches_total"] < 6
    assert 1 < after["facenet_largest_batch"] <= BATCH


def test_the_person_of_a_gallery_or_nobody(server, crops):
    known, stranger = (
        response.json() for response in post(server, [encode(crops[1]), encode(crops[4])], "identify")
    )
    assert known["person"] == known["nearest"][0]["person"] == "Bo"
    assert known["nearest"][0]["distance"] < known["threshold"] == 1e-6
    assert stranger["person"] is None
    assert sorted(each["person"] for each in stranger["nearest"]) == ["Ana", "Bo", "Cy"]


def test_more_requests_than_may_wait_are_put_off(server, crops, rows):
    responses = post(server, [encode(crops[number % 6]) for number in range(30)])
    answered = [number for number, response in enumerate(responses) if response.status_code == 200]
    put_off = [response for response in responses if response.status_code == 503]
    assert len(answered) + len(put_off) == 30
    assert len(answered) >= WAITING
    assert put_off
    assert all(int(response.headers["retry-after"]) >= 1 for response in put_off)
    for number in answered:
        embedding = np.array(responses[number].json()["embedding"])
        assert np.linalg.norm(embedding - rows[number % 6]) < TOLERANCE
    assert metrics(server)["facenet_waiting"] == 0


def test_what_is_refused_does_not_hurt_the_others(server, crops):
    png = encode(crops[0])
    many_pixels = io.BytesIO()
    Image.new("L", (5000, 5000)).save(many_pixels, "PNG")
    bodies = {
        b"": 400,
        b"no image": 400,
        png[: len(png) // 2]: 400,
        encode(crops[0], "BMP"): 400,
        many_pixels.getvalue(): 413,
        png_head(12_000): 413,
        png_head(60_000): 413,
        b"x" * (MOST_BYTES + 1): 413,
        encode(crops[0].repeat(2, axis=0)[:182, :182].repeat(2, axis=1)[:, :182]): 422,
        png: 200,
    }
    responses, some = [], WAITING - 2  # so that nobody is put off
    for start in range(0, len(bodies), some):
        responses += post(server, list(bodies)[start : start + some])
    assert [response.status_code for response in responses] == list(bodies.values())
    assert "no JPEG or PNG" in responses[0].json()["error"]

    async def chunks():
        for _ in range(30):
            yield b"x" * 10_000

    async def send_chunks():
        async with httpx2.AsyncClient(trust_env=False) as client:
            return await client.post(f"{server}/embed", content=chunks())

    assert asyncio.run(send_chunks()).status_code == 413
    with connect(server) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert statuses(connection) == [400]


def test_a_slow_request_is_given_up_while_others_are_answered(server, crops):
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\n"
    slow = [head, head + b"Content-Length: 1000\r\n\r\nsome", b"P"]
    connections = [connect(server) for _ in range(3 * WAITING)]
    start = time.monotonic()
    for number, connection in enumerate(connections):
        connection.sendall(slow[number % 3])
    (response,) = post(server, [encode(crops[0])])
    assert response.status_code == 200
    assert [statuses(connection) for connection in connections] == [[408]] * len(connections)
    assert time.monotonic() - start >= ARRIVAL * 0.9
    endless = connect(server)  # it was refused by its length, and goes on sending
    endless.sendall(head + b"Content-Length: 9999999\r\n\r\n" + b"x" * 1000)
    assert statuses(endless) == [413]  # and the connection has been closed


def test_an_idle_connection_is_closed_without_an_answer(server, crops):
    whole = request(encode(crops[0]))
    sent = {
        b"": [],
        whole * 3: [200] * 3,
        whole + b"\r\n": [200],
        whole + b"POST /em": [200, 408],
        whole + whole[:-10]: [200, 408],
        request(b"some", MOST_BYTES + 1): [413],  # its body does not come
        request(bytes(MOST_BYTES + 1)): [413],
        request(bytes(MOST_BYTES + 1)) + whole[:9]: [413, 408],
    }
    before = metrics(server)
    connections = [connect(server) for _ in sent]
    for connection, content in zip(connections, sent, strict=True):
        connection.sendall(content)
    assert [statuses(connection) for connection in connections] == list(sent.values())
    name = 'facenet_responses_total{status="408"}'
    assert metrics(server)[name] - before.get(name, 0) == 3


def test_a_pause_between_requests_takes_no_time_of_the_next(server, crops):
    whole = request(encode(crops[0]))
    with connect(server) as connection:
        for part in (whole, whole[:9], whole[9:]):
            connection.sendall(part)
            time.sleep(0.6 * ARRIVAL)
        assert statuses(connection) == [200, 200]


def test_a_client_that_has_sent_all_and_closed_its_side_is_answered(server, crops):
    whole = request(encode(crops[0]))
    for content, expected in ((whole, [200]), (whole * 2, [200, 200]), (whole[:-1], []), (whole[:9], [])):
        with connect(server) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            start = time.monotonic()
            assert statuses(connection) == expected
            assert time.monotonic() - start < ARRIVAL


def test_a_client_that_goes_away_leaves_nothing_behind(server, crops):
    """The last test sees what the server printed."""
    for number in range(6):
        with connect(server) as connection:
            connection.sendall(request(encode(crops[0])) * (1 + number % 3))
            time.sleep(0.01)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end = time.monotonic() + 30
    while metrics(server)["facenet_waiting"] and time.monotonic() < end:
        time.sleep(0.1)
    assert metrics(server)["facenet_waiting"] == 0


def test_a_long_head_is_refused_at_once(server):
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    for content in (head + b"X: ", chunked + b"3;", chunked + b"3\r\nabc\r\n0\r\nX: "):
        with connect(server) as connection:
            connection.sendall(content)
            time.sleep(0.1)
            connection.sendall(b"y" * 66_000)
            assert statuses(connection) == [400]
    with connect(server) as connection:
        connection.sendall(head + b"Connection: close\r\nContent-Length: " + b"0" * 5000 + b"4\r\n\r\nsome")
        assert statuses(connection) == [400]  # the body is no image


def test_wrong_options_are_refused(tmp_path, capsys):
    server = import_example("server")
    for seconds in ("nan", "0", "-1", "inf", "some"):
        with pytest.raises(SystemExit) as ended:
            server.main(["--arrival", seconds])
        assert ended.value.code == 2
        assert f"{seconds!r} is not a number of seconds above 0" in capsys.readouterr().err
    assert server.main(["--port", "0", "--gallery", str(tmp_path / "none.parquet")]) == 3
    assert "none.parquet: there is no such file" in capsys.readouterr().err


def test_a_photograph_is_searched_and_its_face_embedded(single_files, monkeypatch):
    from starlette.testclient import TestClient

    server = import_example("server")
    monkeypatch.setattr("faces.embedder.load_model", load_once)
    embedder = Embedder(single_files / "weights.pt", standardisation="fixed")
    embedder.__dict__["detector"] = ColourDetector()
    service = server.FaceService(embedder, server.Limits(1, 1, 0, 1, 1 << 20), None, None)
    with TestClient(service.application()) as client:
        photograph, nobody = (encode(np.asarray(picture(*faces))) for faces in ([ONE], []))
        answer = client.post("/embed", content=photograph).json()
        assert answer["box"] == [40, 30, 82, 76]
        assert np.linalg.norm(answer["embedding"]) == pytest.approx(1, abs=1e-6)
        assert client.post("/embed", content=nobody).status_code == 422
        assert client.post("/identify", content=photograph).status_code == 404


def test_the_load_test_measures_and_counts_errors(server, crops, tmp_path, capsys):
    load_test = import_example("load_test")
    crop, broken = tmp_path / "crop.png", tmp_path / "broken.png"
    crop.write_bytes(encode(crops[0]))
    broken.write_bytes(b"no image")
    assert load_test.main([server, str(crop), "--rate", "5", "--seconds", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"sent +\d+ requests in 1 s: 5\.0/s", printed)
    assert re.search(r"errors +none\nlatency +p50 \d+ ms, p99 \d+ ms, worst \d+ ms", printed)
    assert load_test.main([server, str(crop), str(broken), "--rate", "5", "--seconds", "1"]) == 1
    assert "{'400': " in capsys.readouterr().out
    assert load_test.main(["http://127.0.0.1:1", str(crop)]) == 2
    assert "error: http://127.0.0.1:1: " in capsys.readouterr().err
    assert load_test.main([server, str(crop), "--rate", "1e-9", "--seconds", "1"]) == 2
    assert capsys.readouterr() == (
        "",
        "load_test.py: error: no request was due in 1 s at 1e-09/s: give more seconds or a higher rate\n",
    )
    for seconds in ("inf", "nan", "0", "some"):
        with pytest.raises(SystemExit):
            load_test.main([server, str(crop), "--seconds", seconds])
        assert f"{seconds} is not a finite number above 0" in capsys.readouterr().err
    for wrong in (["--share", "-1"], ["--seconds", "0"], [str(tmp_path / "none.png")]):
        with pytest.raises(SystemExit) as ended:
            load_test.main([server, str(crop), *wrong])
        assert ended.value.code == 2


def test_the_end_answers_what_was_accepted(started, crops, rows):
    """The last test of the file: it ends the server of all."""
    address, process = started

    async def stop_under_load():
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:
            requests = [
                asyncio.create_task(client.post(f"{address}/embed", content=encode(crop))) for crop in crops
            ]
            while not any(request.done() for request in requests):
                await asyncio.sleep(0.01)
            waiting = sum(not request.done() for request in requests)
            process.send_signal(signal.SIGTERM)
            return waiting, await asyncio.gather(*requests)

    half = connect(address)
    half.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    waiting, responses = asyncio.run(stop_under_load())
    assert waiting
    assert [response.status_code for response in responses] == [200] * 6
    actual = np.array([response.json()["embedding"] for response in responses])
    assert np.linalg.norm(actual - rows, axis=1).max() < TOLERANCE
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    assert statuses(half) == [408]
    assert process.wait(30) == 0
    printed = process.stdout.read().splitlines()
    assert set(printed) <= {"WARNING:  Invalid HTTP request received."}  # of what was refused before
