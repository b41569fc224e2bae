import pytest
from jinja2 import UndefinedError

from cahqp.reports.page import environment


def rendered(template, **context):
    return environment().from_string('{% import "macros.html.j2" as m %}' + template).render(context)


def test_attributes_are_escaped():
    page = rendered("{{ m.legend(colours) }}", colours={"car": '"><script>'})
    assert 'fill="&#34;&gt;&lt;script&gt;"' in page
    assert "<script" not in page


def test_children_are_escaped_once():
    page = rendered('{{ m.table(["a<b"], [["c<d", "e&f"]]) }}')
    assert '<th scope="row">c&lt;d</th><td>e&amp;f</td>' in page
    assert '<th scope="col">a&lt;b</th>' in page


def test_attribute_names():
    box = {"bbox": {"x": 1, "y": 2, "width": 3, "height": 4}, "colour": "red", "text": "car"}
    box["labelled"] = True
    picture = {"width": 480, "height": 100, "data": "data:image/jpeg;base64,"}
    page = rendered('{{ m.picture(p, [box], "key") }}', p=picture, box=box)
    assert '<rect x="1" y="2" width="3" height="4" stroke="red" stroke-width="1.5"><title>car</title></rect>' in page
    assert '<text fill="red" x="1" y="13.0" text-anchor="start" font-size="10.0" stroke-width="2.2">car</text>' in page


def test_a_section_of_nothing_is_nothing():
    empty = {
        "command": None,
        "warnings": [],
        "accuracy": {},
        "labels": {},
        "trainings": [],
        "stages": [],
        "decision": {},
        "name": "a",
        "facts": {},
    }
    page = environment().get_template("cycle.html.j2").render(empty)
    assert page.count("<section>") == 1  # settings alone


@pytest.mark.parametrize(("value", "text"), [("a", "a"), (1234, "1,234"), (0.1234, "12.3"), (None, "-")])
def test_cells_are_texts_counts_or_shares(value, text):
    assert f"<td>{text}</td>" in rendered("{{ m.table(['', ''], [['row', value]]) }}", value=value)


def test_a_missing_variable_is_an_error():
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        environment().get_template("cycle.html.j2").render()
