"""Line numbers of keys: every key of a valid text, and the right line."""

import tomli
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from reidcore.locate import locate

ADVERSARIAL = '''# [not.a.table]
extends = "x"  # a = 1
a.b."c.d" = 1
[run]
name = """
[fake]
x = 1 \\""" still
"""
literal = \'\'\'
[fake]
y = "1"\'\'\'
[[train]]
name = 'x'   # [no]
root = "a#b]"
[[train]]
list = [ 1,
  2, { q = 3,
       r = "]" }, # ]
  [4,
   5],
]
[train.options]
z = 1
[[test]]
post = [{ name = "k" },
  { name = "j", k = [1, 2] }]
[ "quoted.key" . x ]
y = 2020-01-01 12:00:00
  indented = "\\"" # "
empty = ""
[[test.inner]]
w = {}
v = []
'''

EXPECTED = {
    ("extends",): 2,
    ("a", "b", "c.d"): 3,
    ("run",): 4,
    ("run", "name"): 5,
    ("run", "literal"): 9,
    ("train", 0): 12,
    ("train", 0, "name"): 13,
    ("train", 0, "root"): 14,
    ("train", 1): 15,
    ("train", 1, "list"): 16,
    ("train", 1, "list", 1): 17,
    ("train", 1, "list", 2, "q"): 17,
    ("train", 1, "list", 2, "r"): 18,
    ("train", 1, "list", 3): 19,
    ("train", 1, "list", 3, 1): 20,
    ("train", 1, "options"): 22,
    ("train", 1, "options", "z"): 23,
    ("test", 0, "post", 0, "name"): 25,
    ("test", 0, "post", 1, "name"): 26,
    ("test", 0, "post", 1, "k", 1): 26,
    ("quoted.key", "x"): 27,
    ("quoted.key", "x", "y"): 28,
    ("quoted.key", "x", "indented"): 29,
    ("quoted.key", "x", "empty"): 30,
    ("test", 0, "inner", 0): 31,
    ("test", 0, "inner", 0, "w"): 32,
    ("test", 0, "inner", 0, "v"): 33,
}


def paths(value, path=()):
    """Yield the path of every key and item of a parsed document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


def test_adversarial_text():
    found = locate(ADVERSARIAL)
    assert {path: found[path] for path in EXPECTED} == EXPECTED


def test_exactly_the_keys_of_the_document_are_located():
    assert set(locate(ADVERSARIAL)) == set(paths(tomli.loads(ADVERSARIAL)))


def test_windows_line_ends():
    assert locate("a = 1\r\n[b]\r\nc = [\r\n 1]\r\n") == {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0): 4}


texts = st.text("aé .#[]{}=,'\"\\\n\t", max_size=6)
values = st.recursive(
    st.one_of(st.integers(-9, 9), st.booleans(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=12,
)


@given(st.dictionaries(texts, values, max_size=4))
def test_exactly_the_keys_of_any_written_document_are_located(document):
    assert set(locate(tomli_w.dumps(document))) == set(paths(document))
