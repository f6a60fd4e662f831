"""The HTTP API: responses, rejected requests, and the page in a real browser."""

import asyncio
import concurrent.futures
import dataclasses
import shutil
import threading

import numpy as np
import pytest
import uvicorn
from fastapi import HTTPException
from starlette.testclient import TestClient

from capret_jax.config import DetectionConfig
from capret_jax.errors import InputError
from capret_jax.retrieval.storage import load_index, save_index
from capret_jax.serve.api import Access, create_app
from capret_jax.serve.middleware import BodyLimit
from capret_jax.serve.searcher import Searcher, as_photograph
from capret_jax.serve.service import ServiceLimits
from tests.commands import in_process
from tests.serve.conftest import picture
from tests.serve.test_uploads import decompression_bomb, scan_bomb

UPLOAD_BYTES = 300_000


@pytest.fixture(scope="module")
def searcher(trained_dir, index_dir):
    searcher = Searcher.from_dir(trained_dir, index_dir)
    searcher.encoder.threshold = 0.0  # after two steps of training all scores are low
    return searcher


@pytest.fixture(scope="module")
def app(searcher, index_dir):
    return create_app(searcher, index_dir, ServiceLimits(upload_bytes=UPLOAD_BYTES, waiting=64))


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app) as client:
        yield client


def test_garments_are_detected_and_searched_for(client, searcher, photo):
    detected = client.post("/api/detect", files={"photo": photo}).json()
    assert detected["garments"] and all(0 <= edge <= 1 for edge in detected["garments"][0]["box"])
    answer = client.post("/api/search", files={"photo": photo}, data={"k": 5}).json()
    assert len(answer["results"]) == 5
    # Without a box the garment with the highest score is used; `Searcher` returns the same items.
    np.testing.assert_allclose(answer["box"], detected["garments"][0]["box"], atol=1e-3)
    expected = searcher.search(photo, k=5)
    assert [result["id"] for result in answer["results"]] == [
        result.item["id"] for result in expected
    ]
    scores = [result["score"] for result in answer["results"]]
    np.testing.assert_allclose(scores, [result.score for result in expected], atol=1e-4)
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("kind", ["phrases", "locations", "both"])
def test_one_setting_chooses_the_detector(searcher, trained_dir, index_dir, photo, kind):
    detection = dataclasses.replace(searcher.encoder.detector.config, kind=kind)
    assert detection == DetectionConfig(kind, samples=1, batch_size=1)  # as in the run
    chosen = Searcher.from_dir(trained_dir, index_dir, detection=detection)
    chosen.encoder.threshold = 0.0
    assert chosen.detect(photo) and len(chosen.search(photo, k=3)) == 3
    same = [x.score for x in chosen.detect(photo)] == [x.score for x in searcher.detect(photo)]
    assert same == (kind == "locations")  # which "auto" stands for


def test_a_photograph_without_garments_has_an_empty_list(searcher, photo, monkeypatch):
    monkeypatch.setattr(searcher.encoder, "threshold", 1.1)
    assert searcher.detect(photo) == []
    assert len(searcher.search(photo, k=3)) == 3  # of the whole photograph


def test_garments_with_embeddings_are_not_encoded_again(searcher, photo, monkeypatch):
    encoder, garment = searcher.encoder, searcher.detect(photo)[0]
    known = encoder.embed([encoder.view(as_photograph(photo), garment.box)])[0]
    found = garment._replace(embedding=known)
    expected = [result.item for result in searcher.search(photo, k=3)]
    monkeypatch.setattr(encoder, "detect", lambda photographs: [[found]] * len(photographs))
    monkeypatch.setattr(encoder, "embed", None)
    assert [result.item for result in searcher.search(photo, k=3)] == expected


def test_an_item_is_its_own_nearest_neighbour(searcher, splits):
    split = splits["validation"]
    row = int(np.flatnonzero(split.items.is_shop)[0])
    pixels = split.photograph(row).pixels()
    best = searcher.search(pixels, k=1, box=split.items.box[row].tolist())[0]
    assert best.score > 0.999
    known = split.items.attributes_of(row)
    assert best.item["id"] == f"{known['image_id']}/{known['number']}"


def test_search_by_filter_text_and_box(client, photo):
    category = client.get("/health").json()["filters"]["category"][0]
    where = f'{{"category": ["{category}"]}}'
    filtered = client.post("/api/search", data={"text": "a dress", "where": where}).json()[
        "results"
    ]
    assert filtered and {result["item"]["category"] for result in filtered} == {category}
    box = {"box": "0.1,0.1,0.6,0.9"}
    both = client.post(
        "/api/search", files={"photo": photo}, data={**box, "text": "a dress"}
    ).json()
    assert both["box"] == [0.1, 0.1, 0.6, 0.9]
    photo_only = client.post("/api/search", files={"photo": photo}, data=box).json()
    assert [r["score"] for r in both["results"]] != [r["score"] for r in photo_only["results"]]


def test_results_have_thumbnails_but_no_file_paths(client, photo):
    result = client.post("/api/search", files={"photo": photo}).json()["results"][0]
    answer = client.get(result["picture"])
    assert answer.headers["content-type"] == "image/jpeg" and answer.content[:2] == b"\xff\xd8"
    assert client.get("/api/pictures/99999").status_code == 404
    assert "image" not in result["item"]
    assert client.get("/api/pictures/..%2F..%2Fetc%2Fpasswd").status_code in (404, 422)


def test_images_with_alpha_and_tiffs_are_accepted(client):
    for data in (picture((60, 80), "RGBA"), picture((60, 80), "L", "TIFF")):
        answer = client.post("/api/detect", files={"photo": data}).json()
        assert (answer["width"], answer["height"]) == (60, 80)


@pytest.mark.parametrize(
    "files, data, status, message",
    [
        ({"photo": b"no picture"}, {}, 422, "no picture"),
        ({"photo": b""}, {}, 422, "is empty"),
        ({"photo": decompression_bomb(8_400)}, {}, 422, "8400 x 8400"),
        ({"photo": decompression_bomb(50_000)}, {}, 422, "pixels"),
        ({"photo": scan_bomb()}, {}, 422, "scans, more than 100"),
        ({"photo": picture()}, {"box": "0.5,0.5,0.5,0.6"}, 422, "box="),
        ({"photo": picture()}, {"box": "a,b"}, 422, "box="),
        ({"photo": picture()}, {"box": "nan,0,1,1"}, 422, "box="),
        ({"photo": picture()}, {"where": "{"}, 422, "where="),
        ({"photo": picture()}, {"where": '{"colour": ["red"]}'}, 422, "no filter 'colour'"),
        ({"photo": picture()}, {"where": '[["red"]]'}, 422, "where="),
        ({"photo": picture()}, {"where": "[" * 100_000}, 422, "where="),
        ({"photo": picture()}, {"where": '{"\\ud800": 1}'}, 422, "no filter"),
        ({"photo": b"%!PS-Adobe-3.0 EPSF-3.0"}, {}, 422, "no picture that can be read: JPEG"),
        ({"photo": picture()}, {"k": "0"}, 422, ""),
        ({"photo": picture()}, {"k": "100000"}, 422, ""),
        ({}, {"text": "  "}, 422, "nothing to search for"),
        ({}, {"text": "!!!"}, 422, "no words"),
        ({}, {"text": "платье"}, 422, "no word of 'платье' is in the model's vocabulary"),
        ({}, {"text": "x" * 501}, 422, ""),
        ({"photo": b"x" * UPLOAD_BYTES}, {}, 413, "larger than"),
    ],
)
def test_invalid_requests_are_rejected(client, files, data, status, message):
    answer = client.post("/api/search", files=files or None, data=data)
    assert answer.status_code == status, answer.text
    assert message in str(answer.json()["detail"])
    assert client.get("/health").json()["status"] == "ok"


def test_empty_and_oversized_bodies_are_rejected(client):
    assert client.post("/api/detect").status_code == 422

    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'
        for _ in range(10):
            yield b"0" * (UPLOAD_BYTES // 5)

    kind = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/api/detect", content=endless(), headers=kind)
    assert answer.status_code == 413


def test_concurrent_requests_are_all_answered(client, photo):
    def search(_):
        return client.post("/api/search", files={"photo": photo}, data={"k": 3}).json()["results"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(search, range(32)))
    assert len({result["id"] for answer in answers for result in answer}) == 3
    metrics = client.get("/metrics").text
    assert 'capret_request_seconds_count{path="/api/search",status="200"}' in metrics


def test_documentation_and_page_are_served(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/api/detect", "/api/search", "/health", "/metrics"} <= paths.keys()
    page = client.get("/docs").text
    assert "POST /api/search" in page and "x1,y1,x2,y2 as fractions" in page
    assert "<script" not in page and "http" not in page
    assert "Photo" in client.get("/").text


def test_answers_have_security_headers(client):
    for path in ("/", "/health", "/nothing", "/docs"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"


def test_other_hosts_are_refused_and_metrics_can_be_off(searcher, index_dir):
    access = Access(hosts=("shop.example",), metrics=False)
    with TestClient(create_app(searcher, index_dir, access=access)) as client:
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 400
        named = {"host": "shop.example"}
        assert client.get("/health", headers=named).status_code == 200
        assert client.get("/metrics", headers=named).status_code == 404


def test_a_request_that_does_not_arrive_is_ended():
    """A body of which half is sent, and a body that is complete."""

    async def application(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def call(messages):
        waiting = list(messages)

        async def receive():
            if waiting:
                return waiting.pop(0)
            await asyncio.sleep(30)

        async def send(message):
            answers.append(message["status"])

        answers = []
        await BodyLimit(application, 100, seconds=0.05)(
            {"type": "http", "headers": []}, receive, send
        )
        return answers

    half = {"type": "http.request", "body": b"half", "more_body": True}
    whole = {"type": "http.request", "body": b"whole", "more_body": False}
    assert asyncio.run(call([half, whole])) == [200]
    with pytest.raises(HTTPException, match="did not arrive within 0.05 seconds") as error:
        asyncio.run(call([half]))
    assert error.value.status_code == 408


def test_the_index_is_in_the_models_folder_if_none_is_named(trained_dir, index_dir, tmp_path):
    for path in trained_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match="is not an index"):
        Searcher.from_dir(tmp_path)
    (tmp_path / "index").symlink_to(index_dir)
    assert len(Searcher.from_dir(tmp_path).index) == len(load_index(index_dir))


def test_queries_are_embedded_in_the_precision_asked_for(searcher, trained_dir, index_dir):
    fast = Searcher.from_dir(trained_dir, index_dir, precision="bfloat16")
    exact = searcher.encoder.embed_text("a red skirt")
    rounded = fast.encoder.embed_text("a red skirt")
    assert 2e-4 < np.abs(rounded - exact).max() < 5e-2
    assert fast.encoder.model.compute.dtype == "bfloat16"
    with pytest.raises(InputError, match="precision='float16' is none of float32, bfloat16"):
        Searcher.from_dir(trained_dir, index_dir, precision="float16")
    code, _, error = in_process.call("capret_jax.serve.app", "--model=M", "--precision=float16")
    assert code == 2 and "float32|bfloat16" in error


def test_an_index_of_another_model_or_with_damage_is_rejected(trained_dir, index_dir, tmp_path):
    index = load_index(index_dir)
    index.model = "other"
    save_index(index, tmp_path / "index")
    with pytest.raises(InputError, match="made with another model"):
        Searcher.from_dir(trained_dir, tmp_path / "index")
    shutil.copytree(index_dir, tmp_path / "truncated")
    vectors = tmp_path / "truncated" / "vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1])
    with pytest.raises(InputError, match="vectors.npy is missing or was changed"):
        Searcher.from_dir(trained_dir, tmp_path / "truncated")


@pytest.fixture
def address(searcher, index_dir):
    """Address of a running server; its own application, since one cannot run in two event loops."""
    app = create_app(searcher, index_dir)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    host, port = server.servers[0].sockets[0].getsockname()
    assert host == "127.0.0.1"
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
def test_upload_boxes_results_filter_in_a_browser(address, photo, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    (tmp_path / "photo.jpg").write_bytes(photo)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(address)
        page.set_input_files("#file", tmp_path / "photo.jpg")
        items = page.locator(".item")
        expect(items.first).to_be_visible()
        assert page.locator(".box").count() >= 1 and page.locator(".box.chosen").count() == 1
        before = items.count()
        # Draw a box.
        stage = page.locator("#stage").bounding_box()
        x, y = stage["x"] + 0.2 * stage["width"], stage["y"] + 0.2 * stage["height"]
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 0.5 * stage["width"], y + 0.5 * stage["height"])
        page.mouse.up()
        expect(page.locator(".box.chosen span")).to_have_count(0)
        # Filter by category.
        choices = page.locator("select[name=category] option")
        expect(choices).not_to_have_count(1)
        category = choices.nth(1).inner_text()
        page.select_option("select[name=category]", category)
        expect(items).not_to_have_count(before)
        assert set(page.locator(".item b").all_inner_texts()) == {category}
        # Search by text alone.
        page.click("#clear")
        page.fill("#text", "a dress")
        expect(page.locator("#status")).to_contain_text("items in")
        # An unreadable file shows an error, and another photo can be chosen.
        (tmp_path / "photo.jpg").write_bytes(b"no picture")
        page.set_input_files("#file", tmp_path / "photo.jpg")
        expect(page.locator("#status.error")).to_contain_text("no picture")
        expect(page.locator("#drop")).to_be_visible()
        browser.close()
    assert [error for error in errors if "422" not in error] == []
