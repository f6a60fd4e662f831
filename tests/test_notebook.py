"""The notebook: stored without outputs, and its results when it is executed."""

import base64
import io
import os
import pathlib
import re

import nbclient
import nbformat
import pytest
from PIL import Image

from capret_jax.retrieval.storage import load_index

pytestmark = pytest.mark.slow

NOTEBOOK = pathlib.Path(__file__).parent.parent / "notebooks" / "folder_to_results.ipynb"
SEARCHES = ("search-photo", "search-box", "search-words", "search-filter")
SHOP_PICTURES, PHOTOS, RESULTS = 52, 12, 5


def execute(folder: pathlib.Path, **parameters: pathlib.Path) -> dict[str, list]:
    """Executes the notebook in an empty folder.

    Args:
        folder: folder for its outputs and for the kernel's own files.
        parameters: further environment variables CAPRET_NOTEBOOK_*, by the end of their names.

    Returns:
        The outputs of each code cell by the cell's id.
    """
    current = folder / "current"
    current.mkdir(parents=True)
    variables = {"DIR": folder / "out"} | parameters
    environment = {f"CAPRET_NOTEBOOK_{name}": str(value) for name, value in variables.items()}
    environment |= {name: str(folder / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(current)}}
    client = nbclient.NotebookClient(notebook, timeout=600, resources=resources)
    client.execute(env=os.environ | environment)
    assert not any(current.iterdir()), "it wrote outside of CAPRET_NOTEBOOK_DIR"
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def printed(outputs: list) -> str:
    """Joins what a cell printed on stdout."""
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def pictures(outputs: list) -> list[Image.Image]:
    """Decodes the pictures that a cell shows."""
    shown = [output.data["image/png"] for output in outputs if "data" in output]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in shown]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def outputs(folder):
    return execute(folder)


def test_it_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(cell.metadata for cell in notebook.cells)
    # Random ids are 8 hexadecimal digits; names stay the same when the notebook is edited.
    assert not [cell.id for cell in notebook.cells if re.fullmatch("[0-9a-f]{8}", cell.id)]


def test_its_links_lead_to_files():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    text = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((.*?)\)", text)
    assert links and not [link for link in links if not (NOTEBOOK.parent / link).is_file()]


def test_it_indexes_every_shop_picture(outputs, folder):
    assert f"{PHOTOS} photos to search with" in printed(outputs["pictures"])
    assert f"{SHOP_PICTURES} items, embeddings of width 32" in printed(outputs["index"])
    assert "left out" not in printed(outputs["index"])
    ids = {item["id"] for item in load_index(folder / "out" / "index").items}
    shop = folder / "out" / "shop"
    assert ids == {str(path.relative_to(shop)) for path in shop.rglob("*.jpg")}
    assert len(ids) == SHOP_PICTURES


def test_it_shows_the_query_and_its_results(outputs):
    for cell in SEARCHES:
        (picture,) = pictures(outputs[cell])
        assert picture.size == ((128 + 8) * (1 + RESULTS), 128 + 20)
        for i in range(1 + RESULTS):
            tile = picture.crop((136 * i, 0, 136 * i + 128, 128)).convert("RGB")
            assert len(tile.getcolors(128 * 128)) > 2, f"{cell}: picture {i} is empty"


def test_it_filters_by_category(outputs):
    assert "where={'category': 'long sleeve outwear'}" in printed(outputs["search-filter"])


def test_it_measures_the_index(outputs):
    measured = printed(outputs["measure-index"])
    assert re.findall(r"^(.*): recall@5 (.*)$", measured, re.M) == [
        ("exact", "1.000"),
        ("ScaNN brute force", "1.000"),
    ]
    own = f"found first by their own picture: {SHOP_PICTURES} of {SHOP_PICTURES} items"
    assert own in measured


def test_it_measures_the_model(outputs):
    right = re.search(rf"right first results: (\d+) of {PHOTOS}", printed(outputs["measure-model"]))
    assert right and 0 <= int(right[1]) <= PHOTOS
    # 2 of the 52 pictures show the garment of a photo.
    assert "by chance: 4%" in printed(outputs["measure-model"])


def test_it_takes_pictures_and_a_model_of_the_user(outputs, folder, tmp_path):
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "broken.jpg").write_bytes(b"broken")
    source = sorted((folder / "out" / "shop").rglob("*.jpg"))[:7]
    for path in source:
        (shop / path.name).write_bytes(path.read_bytes())
    model = folder / "out" / "model"
    results = execute(tmp_path / "run", PICTURES=shop, MODEL=model)
    assert f"pictures in {shop}; 0 photos" in printed(results["pictures"])
    assert printed(results["model"]) == f"model: {model}\n"
    assert "left out: broken.jpg" in printed(results["index"])
    assert "7 items" in printed(results["index"])
    assert "where=None, out of the categories []" in printed(results["search-filter"])
    assert all(len(pictures(results[cell])) == 1 for cell in SEARCHES)
    assert "own picture: 7 of 7 items" in printed(results["measure-index"])
    assert "for the drawn pictures only" in printed(results["measure-model"])
