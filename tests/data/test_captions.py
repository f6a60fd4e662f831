"""The template and the cleaning of captions."""

from capret_jax.data.captions import clean_caption, template_caption


def test_template_names_the_category_and_the_levels():
    item = {"category_id": 8, "viewpoint": 3, "occlusion": 1, "scale": 2, "zoom_in": 3, "style": 4}
    assert template_caption(item) == (
        "an image of a trousers with viewpoint side or back, occlusion level slight, "
        "scale modest, and zoom in large"
    )


def test_cleaning_follows_the_reference():
    assert (
        clean_caption('A "T-shirt", red/blue (new):  it\'s #1!') == "a t shirt red blue new its 1"
    )
    assert clean_caption(" ".join(["word"] * 60)).split() == ["word"] * 40
