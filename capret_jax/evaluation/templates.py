"""Rendering of report templates."""

import pathlib

import jinja2


def render(template: pathlib.Path, **values) -> str:
    """Renders a Jinja template.

    In .html.jinja files values are escaped. The filters `points` and `percent` format fractions.

    Args:
        template: the template's file.
        values: the template's variables.

    Raises:
        jinja2.UndefinedError: the template uses a variable that is not among the values.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=template.name.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["points"] = lambda fraction: f"{100 * fraction:+.1f}"
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.1f}"
    return environment.get_template(template.name).render(**values)
