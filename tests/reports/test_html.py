from cahqp.reports.html import Markup, element, section


def test_attributes_are_escaped():
    assert element("use", href='"><script>') == '<use href="&quot;&gt;&lt;script&gt;"/>'


def test_children_are_escaped_once():
    assert element("p", element("b", "a<b")) == "<p><b>a&lt;b</b></p>"


def test_attribute_names():
    assert element("p", "", class_="x", aria_label="y") == '<p class="x" aria-label="y"></p>'


def test_a_section_of_nothing_is_nothing():
    assert section("Title", Markup("")) == ""
