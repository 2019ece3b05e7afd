"""Labels hold harmless text; the driver goes on when a method cannot."""

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_examples import numbered
from markdown_it import MarkdownIt
from pydantic import ValidationError

from musae_utils import labels, runs
from musae_utils.labels import Label, Unavailable, clean, name_features, safe

relaxed = settings(deadline=None)
HOSTILE = [
    "<script>alert(1)</script>", "# *loud* [x](javascript:1) `code` $x$ |a|b|", "\u202eetulf\u200b",
    "a\x00b\x1b[31m\nline", "&lt;b&gt; &#60;", "\ud800 alone",
]  # fmt: skip


@relaxed
@given(st.text(max_size=300) | st.sampled_from(HOSTILE))
def test_cleaned_text_is_one_short_line_without_marks(text):
    said = clean(text)
    assert len(said) <= 120 and said == clean(said) and said == " ".join(said.split())
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", said)
    said.encode()  # nothing that could not be written


@relaxed
@given(st.text(max_size=100) | st.sampled_from(HOSTILE))
def test_safe_text_means_the_same_and_starts_nothing_on_a_page(text):
    text = clean(text)
    page = safe(text)
    assert html.unescape(page) == text
    assert not re.search(r"[<>\"'*_`\[\]$|\\]", page)
    shown = MarkdownIt().render(f"Label: {page}.")
    assert html.unescape(shown) == f"<p>Label: {text}.</p>\n"


def test_a_label_of_any_text_fits_a_table():
    long = Label(feature=1, method="m", text="loud " * 10_000, evidence="x" * 50_000)
    assert len(long.text) == 120 and long.text.endswith("…") and len(long.evidence) == 600
    assert clean("\u202e" * 50_000) == ""
    shown = Label(feature=1, method="<m>", text=HOSTILE[0], evidence=HOSTILE[0])._repr_html_()
    assert "<script" not in shown and "&#60;script" in shown and "<m>" not in shown
    silent = Label(feature=1, method="m", text="\u200b \n")
    assert silent.abstains and "abstains" in silent._repr_html_()


@pytest.mark.parametrize(
    "wrong", [{"feature": -1}, {"method": ""}, {"cost": float("nan")}, {"cost": -1}, {"other": 1}]
)
def test_a_label_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        Label(**{"feature": 1, "method": "m"} | wrong)


def test_labels_survive_a_file_and_a_foreign_file_is_refused(tmp_path):
    said = [Label(feature=i, method="m", text=text) for i, text in enumerate(HOSTILE)]
    assert labels.load(labels.save(tmp_path / "labels.json", said)) == said
    runs.save_json(tmp_path / "evil.json", [{"feature": 1, "method": "m", "text": "a\u202eb"}])
    assert labels.load(tmp_path / "evil.json")[0].text == "ab"
    for foreign in ([{"name": 3}], 7, [1]):
        runs.save_json(tmp_path / "foreign.json", foreign)
        with pytest.raises(runs.RunError, match=r"foreign\.json does not hold labels"):
            labels.load(tmp_path / "foreign.json")


class Says:
    def __init__(self, name, after=None):
        self.name, self.after, self.saw = name, after, []

    def label(self, half):
        self.saw.append(half)
        if self.after is not None and len(self.saw) > self.after:
            raise Unavailable("No key: set the environment variable X.")
        return Label(feature=half.feature, method=self.name, text="loud")


def test_methods_see_the_finding_half_and_the_others_go_on_without_one_that_cannot():
    good, gone = Says("good"), Says("gone", after=1)
    features = [numbered(i) for i in range(3)]
    named = name_features([gone, good], features, progress=False)
    assert good.saw == [chosen.finding for chosen in features]
    assert [(la.feature, la.method) for la in named.labels] == [
        (0, "gone"), (0, "good"), (1, "good"), (2, "good"),
    ]  # fmt: skip
    assert named.missing == {"gone": "No key: set the environment variable X."}
    assert len(gone.saw) == 2, "not asked again"
    with pytest.raises(ValueError, match="told apart by their names"):
        name_features([good, good], features)
