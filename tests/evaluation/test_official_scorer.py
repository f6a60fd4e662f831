"""The official rules, on cases with a known result."""

import json

import pytest

from capret_jax.errors import InputError
from capret_jax.evaluation.official_scorer import GALLERY_KEYS, QUERY_KEYS, read_entries, score

LEFT, RIGHT, FAR = [0, 0, 10, 10], [20, 0, 30, 10], [100, 100, 110, 110]


def query(image=1, box=LEFT, cls=1, style=1, pair=7):
    return {"query_image_id": image, "bbox": box, "cls": cls, "style": style, "pair_id": pair}


def item(image, box=LEFT, style=1, pair=7):
    return {"gallery_image_id": image, "bbox": box, "style": style, "pair_id": pair}


def result(images, image=1, box=LEFT, cls=1, score=1.0, boxes=None):
    return {
        "query_image_id": image,
        "query_bbox": box,
        "query_cls": cls,
        "query_score": score,
        "gallery_image_id": images,
        "gallery_bbox": boxes or [LEFT] * len(images),
    }


def numbers(results, queries, gallery, floor=0.0):
    return score(results, queries, gallery, floor).as_dict()


@pytest.mark.parametrize(
    "rank, smallest_k", [(1, 1), (2, 5), (6, 10), (11, 15), (20, 20), (21, None)]
)
def test_a_relevant_result_counts_from_its_rank_on(rank, smallest_k):
    # The relevant picture, number 50, is at `rank` among 21 pictures.
    images = [50 if i == rank else 1000 + i for i in range(1, 22)]
    metrics = numbers([result(images)], [query()], [item(50)])
    for k in (1, 5, 10, 15, 20):
        assert metrics[f"top_{k}"] == (smallest_k is not None and k >= smallest_k)
    assert (metrics["queries"], metrics["missed"]) == (1, 0)


def test_the_retrieved_box_must_overlap_the_item():
    # The item in picture 50 is at the left. A box of half its area has IoU 0.5, which is enough;
    # 4/10 of it is not; nor is the other garment of the same picture.
    gallery = [item(50), item(50, RIGHT, style=2)]
    for box, expected in (([0, 0, 5, 10], 1), ([0, 0, 4, 10], 0), (RIGHT, 0)):
        metrics = numbers([result([50], boxes=[box])], [query()], gallery)
        assert metrics["top_1"] == expected


def test_pair_and_style_must_equal_the_querys():
    gallery = [item(50, pair=8), item(51, style=2), item(52)]
    metrics = numbers([result([50, 51, 52])], [query()], gallery)
    assert (metrics["top_1"], metrics["top_5"]) == (0, 1)


def test_the_best_scored_detection_of_the_items_class_is_assigned():
    # All three overlap the item. That of score 0.9 has another class; of the others the one of 0.8
    # is assigned, and its result is not relevant.
    results = [
        result([50], score=0.9, cls=2),
        result([60], score=0.8),
        result([50], score=0.7),
    ]
    assert numbers(results, [query()], [item(50)])["top_1"] == 0
    results[2]["query_score"] = 0.85
    assert numbers(results, [query()], [item(50)])["top_1"] == 1


def test_a_detection_is_assigned_to_the_item_that_it_overlaps_most():
    # Two items of one class; the detection at the right is assigned to the right one only.
    queries = [query(box=LEFT, style=1), query(box=RIGHT, style=2)]
    metrics = numbers([result([50], box=RIGHT)], queries, [item(50, style=2)])
    assert (metrics["top_1"], metrics["missed"]) == (0.5, 1)


def test_ties_are_assigned_to_the_first_item():
    # Half way between two items, the detection overlaps both by 5x10: IoU 1/3 each.
    queries = [query(box=[0, 0, 10, 10], style=1), query(box=[10, 0, 20, 10], style=2)]
    gallery = [item(50, style=1), item(50, style=2)]
    metrics = numbers([result([50], box=[5, 0, 15, 10])], queries, gallery)
    assert (metrics["top_1"], metrics["missed"]) == (0.5, 1)
    assert score([result([50], box=[5, 0, 15, 10])], queries, gallery).first.tolist() == [0, 20]


def test_items_without_identity_are_assigned_detections_but_not_evaluated():
    # The detection overlaps the style-0 item, so the other one is missed; one query in all.
    queries = [query(box=LEFT, style=0), query(box=RIGHT, style=1)]
    metrics = numbers([result([50], box=LEFT)], queries, [item(50)])
    assert (metrics["top_1"], metrics["missed"], metrics["queries"]) == (0, 1, 1)


def test_a_detection_without_overlap_counts_unless_there_is_a_floor():
    # A detection far from every item overlaps all by 0. By the official rules it is assigned to the
    # first.
    far = result([50], box=FAR)
    assert numbers([far], [query()], [item(50)])["top_1"] == 1
    floored = numbers([far], [query()], [item(50)], floor=0.5)
    assert (floored["top_1"], floored["missed"]) == (0, 1)
    # IoU 0.5 exactly is enough for a floor of 0.5.
    half = result([50], box=[0, 0, 5, 10])
    assert numbers([half], [query()], [item(50)], floor=0.5)["top_1"] == 1


def test_items_in_images_without_results_count_apart_from_missed_ones():
    metrics = numbers([result([50])], [query(), query(image=2)], [item(50)])
    assert (metrics["top_1"], metrics["missed"]) == (0.5, 0)
    assert (metrics["without_results"], metrics["queries"]) == (1, 2)


def test_a_query_without_relevant_items_has_accuracy_zero():
    assert numbers([result([50])], [query()], [item(50, pair=9)])["top_20"] == 0


def test_files_with_other_content_raise(tmp_path):
    path = tmp_path / "query.json"
    path.write_text("[{")
    with pytest.raises(InputError, match=r"query\.json is no readable JSON"):
        read_entries(path, QUERY_KEYS)
    path.write_text("{}")
    with pytest.raises(InputError, match="holds a dict, not a list"):
        read_entries(path, QUERY_KEYS)
    entry = query()
    del entry["cls"]
    path.write_text(json.dumps([query(), entry]))
    with pytest.raises(InputError, match="entry 1 has no 'cls'"):
        read_entries(path, QUERY_KEYS)
    with pytest.raises(InputError, match="entry 0 has no 'gallery_image_id'"):
        read_entries(path, GALLERY_KEYS)
    with pytest.raises(InputError, match="nothing to score"):
        score([], [query(style=0)], [])
