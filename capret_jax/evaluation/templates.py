"""Templates that become pages."""

import pathlib

import jinja2


def render(template: pathlib.Path, **values) -> str:
    """A Jinja template's text; in .html files values are escaped, and names must exist."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=template.name.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["points"] = lambda share: f"{100 * share:+.1f}"
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    return environment.get_template(template.name).render(**values)
