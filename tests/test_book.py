"""The command that runs the chapters and builds the site, on a small book written here."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from musae_utils import book
from musae_utils.book import BookError

ROOT = Path(__file__).resolve().parents[1]


def write_chapter(root, name, *code, title="A title", parameters=None, question="Why is it so?"):
    """Write a notebook with a title, a question, a parameters cell and the given code cells."""
    if parameters is None:
        parameters = 'profile: str = "full"  # how much\nmodel: str = "nano"  # which'
    cells = [
        new_markdown_cell(f"# {title}\n\n**{question}**"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *(c if isinstance(c, dict) else new_code_cell(c) for c in code),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(
        new_notebook(cells=cells, metadata={"kernelspec": kernel}),
        root / "notebooks" / f"{name}.ipynb",
    )


def list_chapters(root, *names):
    """Write a table of contents with these chapters."""
    toc = {"format": "jb-book", "root": "book/intro", "parts": []}
    chapters = [{"file": f"notebooks/{name}"} for name in names]
    if chapters:
        toc["parts"].append({"caption": "Chapters", "chapters": chapters})
    toc["parts"].append({"caption": "Reference", "chapters": [{"file": "book/status"}]})
    (root / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))


@pytest.fixture
def root(tmp_path):
    """A repository with a small book: the real configuration, pages of its own, no chapter."""
    root = tmp_path / "repository"
    (root / "book").mkdir(parents=True)
    (root / "musae_utils").mkdir()
    (root / "musae_utils" / "stats.py").write_text("x = 1\n")
    (root / "data").mkdir()
    (root / "requirements.lock").write_text("numpy==2\n")
    shutil.copy(ROOT / "_config.yml", root)
    for folder in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    (root / "book" / "intro.md").write_text("# Small book\n\n<!-- chapters -->\n")
    list_chapters(root)
    return root


# -- what is in the book -------------------------------------------------------------------------


def test_pages_quote_figures_with_their_intervals(root, tmp_path):
    figures = [
        {"name": "a.b", "value": 0.123456, "low": 0.1, "high": 0.2, "n": 9, "unit": "dB"},
        {"name": "a.c", "value": 4.0, "low": None, "high": None, "n": 1, "unit": ""},
    ]
    (root / "data" / "scoreboard.json").write_text(json.dumps(figures))
    text = "It is <!-- figure: a.b -->, <!-- figure: a.c --> and <!-- figure: a.d -->."
    (root / "book" / "intro.md").write_text(text)
    book.stage(root, tmp_path / "source", [], None, "")
    told = (tmp_path / "source" / "book" / "intro.md").read_text()
    assert told == "It is 0.123 dB [0.1, 0.2], 4 and *not measured yet*."


def test_the_table_of_contents_and_the_notebooks_agree(root):
    list_chapters(root, "01_one", "02_two")
    write_chapter(root, "01_one")
    with pytest.raises(BookError, match=r"lists notebooks/02_two, but there is no such"):
        book.load_chapters(root)
    write_chapter(root, "02_two")
    assert [c.name for c in book.load_chapters(root)] == ["01_one", "02_two"]
    write_chapter(root, "03_three")
    with pytest.raises(BookError, match=r"add `- file: notebooks/03_three` to book/_toc\.yml"):
        book.load_chapters(root)


def test_a_file_that_is_no_notebook_is_named(root):
    list_chapters(root, "01_one")
    (root / "notebooks").mkdir()
    (root / "notebooks" / "01_one.ipynb").write_text("{")
    with pytest.raises(BookError, match=r"01_one\.ipynb is not a notebook"):
        book.load_chapters(root)


@pytest.mark.parametrize(
    ("text", "title", "question"),
    [
        ("# Title\n\n**What is it?**\n\nText.", "Title", "What is it?"),
        ("# 01 · Title\n\nWhat is it?", "Title", "What is it?"),
        ("# Title\n\n> *What is it\n> and why?*\n\nText.", "Title", "What is it and why?"),
        ("# Title\n\nNo question.\n\nBut this?", "Title", ""),
        ("# Title", "Title", ""),
    ],
)
def test_a_chapter_begins_with_title_and_question(tmp_path, text, title, question):
    notebook = new_notebook(cells=[new_markdown_cell(text)])
    chapter = book.Chapter(tmp_path / "01_x.ipynb", notebook)
    assert (chapter.title, chapter.question) == (title, question)


def test_a_chapter_without_title_is_named(tmp_path):
    notebook = new_notebook(cells=[new_markdown_cell("Text.")])
    with pytest.raises(BookError, match=r"01_x\.ipynb does not begin with a title"):
        _ = book.Chapter(tmp_path / "01_x.ipynb", notebook).title


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, ["01_one", "02_two", "10_ten"]),
        ("02", ["02_two"]),
        ("2", ["02_two"]),
        ("10, 01", ["01_one", "10_ten"]),
        ("02_two", ["02_two"]),
        ("02_two.ipynb", ["02_two"]),
    ],
)
def test_chapters_are_chosen_by_number_or_name(tmp_path, only, expected):
    names = ["01_one", "02_two", "10_ten"]
    chapters = [book.Chapter(tmp_path / f"{n}.ipynb", new_notebook()) for n in names]
    assert [c.name for c in book.select(chapters, only)] == expected
    with pytest.raises(BookError, match=r"no chapter '07'\. The chapters: 01_one, 02_two, 10_ten"):
        book.select(chapters, "01 07")


# -- parameters ----------------------------------------------------------------------------------


def prepare(root, **given):
    """Return the chapters with their parameters, as `make_book` would give them."""
    chapters = book.load_chapters(root)
    asked = {"profile": "smoke", "model": "nano", "data": None, "extra": {}, **given}
    book.set_parameters(chapters, book.select(chapters, asked.pop("only", None)), **asked)
    return chapters


def test_parameters_go_to_the_chapters_that_declare_them(root):
    list_chapters(root, "01_one", "02_two")
    write_chapter(root, "01_one", parameters='profile: str = "full"\nclips: int = 3\nname = "a"')
    write_chapter(root, "02_two", parameters='profile = "full"\nmodel = "nano"\ndata = ""')
    one, two = prepare(root, model="m", data="d")
    assert one.parameters == {"profile": "smoke"}
    assert two.parameters == {"profile": "smoke", "model": "m", "data": "d"}
    one, two = prepare(root, extra={"clips": "5"}, only="01")
    assert one.parameters["clips"] == 5 and two.parameters["model"] == "nano"


def test_a_text_parameter_stays_text(root):
    list_chapters(root, "01_one")
    write_chapter(root, "01_one", parameters='profile: str = "full"\nname: str = "a"')
    assert prepare(root, extra={"name": "5"})[0].parameters["name"] == "5"


def test_a_parameter_that_no_chapter_declares_is_refused(root):
    list_chapters(root, "01_one")
    write_chapter(root, "01_one")
    with pytest.raises(BookError) as caught:
        prepare(root, extra={"modle": "nano"})
    words = str(caught.value)
    assert words.startswith("01_one.ipynb has no parameter 'modle'. It declares:")
    assert 'profile = "full"   how much' in words and 'model = "nano"   which' in words
    with pytest.raises(BookError, match=r"data = 'here' was given, but 01_one\.ipynb declares no"):
        prepare(root, data="here")


def test_every_chapter_must_have_a_profile(root):
    list_chapters(root, "01_one")
    write_chapter(root, "01_one", parameters='model = "nano"')
    with pytest.raises(BookError, match=r"01_one\.ipynb declares no parameter `profile`"):
        prepare(root)


def test_data_must_be_a_folder(root):
    with pytest.raises(BookError, match="data = '/nowhere' is not a folder"):
        book.make_book(root, data="/nowhere")


# -- what makes a chapter stale ------------------------------------------------------------------


def key_of(root, **given):
    return book.key(prepare(root, **given)[0], book.shared_hash(root))


def test_a_chapter_is_stale_when_something_that_matters_changed(root, tmp_path):
    list_chapters(root, "01_one")
    parameters = 'profile = "full"\nmodel = "nano"\ndata = ""'
    write_chapter(root, "01_one", "1 + 1", parameters=parameters)
    first = key_of(root)

    path = root / "notebooks" / "01_one.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[2].outputs = [new_output("stream", text="2")]
    notebook.cells[2].execution_count = 7
    nbformat.write(notebook, path)
    (root / "musae_utils" / "book.py").write_text("# how chapters are run, not what they compute")
    assert key_of(root) == first, "outputs and this command are no reason to run again"

    seen = {first, key_of(root, profile="full"), key_of(root, model="other")}
    assert len(seen) == 3
    for change in (
        lambda: (root / "musae_utils" / "stats.py").write_text("x = 2\n"),
        lambda: (root / "data" / "codec.json").write_text("{}"),
        lambda: (root / "requirements.lock").write_text("numpy==3\n"),
        lambda: write_chapter(root, "01_one", "1 + 2", parameters=parameters),
    ):
        change()
        seen.add(key_of(root))
    assert len(seen) == 7
    music = tmp_path / "music"
    music.mkdir()
    seen.add(key_of(root, data=str(music)))
    (music / "a.wav").write_bytes(b"x")
    seen.add(key_of(root, data=str(music)))
    assert len(seen) == 9


# -- outputs that a page cannot show -------------------------------------------------------------

WIDGET = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "IntSlider()"}
FIGURE = {"application/vnd.plotly.v1+json": {}}
STATIC = {"text/html": "<p>x</p>", "text/plain": "x"}


@pytest.mark.parametrize(
    ("outputs", "hollow"),
    [
        ([], False),
        ([{"text/plain": "x"}], False),
        ([STATIC], False),
        ([{"image/png": ""}], False),
        ([WIDGET], True),
        ([FIGURE], True),
        ([WIDGET, {"text/plain": "x"}], True),
        ([WIDGET, STATIC], False),
        ([{**FIGURE, **STATIC}], False),
    ],
)
def test_a_widget_needs_a_static_form(outputs, hollow):
    cell = new_code_cell("fig = 1\nfig", execution_count=4)
    cell.outputs = [new_output("display_data", data=data) for data in outputs]
    said = book.hollow_outputs(new_notebook(cells=[new_markdown_cell("x"), cell]))
    assert bool(said) is hollow
    if hollow:
        assert "In [4] (fig)" in said and "musae_utils.show" in said


# -- words and tables ----------------------------------------------------------------------------


def test_the_scoreboard_is_quoted_with_its_intervals(tmp_path):
    entries = [
        {"name": "nano.codec.x", "value": 0.97123, "low": 0.96, "high": 0.98, "n": 64, "unit": ""},
        {"name": "trace.y", "value": 1.0, "low": None, "high": None, "n": None, "unit": "ratio"},
        {"name": "nano.z", "value": 12345.6, "low": 1, "high": 2, "n": 3, "unit": "s"},
        {"name": "none", "value": None, "n": 3, "unit": ""},
    ]
    headlines = [{**entry, "headline": True} for entry in entries]
    table = book.scoreboard_table(headlines)
    assert "| `nano.codec.x` | 0.971 | 0.96 – 0.98 | 64 |" in table
    assert "| `trace.y` | 1 ratio |  |  |" in table and "12346 s" in table and "| – |" in table
    (tmp_path / "data").mkdir()
    details = [{**entries[1], "name": name} for name in ("trace.y.short", "nano.books.1")]
    (tmp_path / "data" / "scoreboard.json").write_text(json.dumps(headlines + details))
    begin, end = book.QUOTE
    (tmp_path / "README.md").write_text(f"Before\n\n{begin}\nold \\1 old\n{end}\n\nAfter\n")
    quoted = book.quote_scoreboard(tmp_path)
    assert quoted == f"Before\n\n{begin}\n\n{table}\n\n{end}\n\nAfter\n"


@given(st.text(min_size=1))
def test_any_model_name_makes_a_safe_folder_name(name):
    assert re.fullmatch(r"[A-Za-z0-9._-]+", book.slug(name))
    assert not book.slug(name).startswith((".", "-"))


def test_two_folders_of_one_name_are_two_models(tmp_path):
    for place in "ab":
        (tmp_path / place / "model").mkdir(parents=True)
    slugs = {book.slug(str(tmp_path / place / "model")) for place in "ab"}
    assert len(slugs) == 2 and all(s.startswith("model-") for s in slugs)
    assert book.slug("facebook/musicgen-small") == "facebook-musicgen-small"


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (59, "59 s"), (125, "2:05")])
def test_times_are_readable(seconds, words):
    assert book._clock(seconds) == words


def test_the_remaining_time_is_an_estimate_or_says_that_it_is_none(tmp_path):
    one, two = (book.Chapter(tmp_path / f"0{i}_x.ipynb", new_notebook()) for i in (1, 2))
    assert book._remaining([one, two], {"01_x": 100, "02_x": None}) == "about 3:20 remain"
    assert "not known" in book._remaining([one], {"01_x": None})
    assert book._remaining([], {}) == "nothing remains"


# -- the command ---------------------------------------------------------------------------------


def test_errors_are_sentences_without_a_traceback(root, monkeypatch, capsys):
    monkeypatch.setattr(book, "ROOT", root)
    assert book.main(["--only", "09"]) == 2
    printed = capsys.readouterr()
    assert printed.err.strip() == "There is no chapter '09'. The chapters: none yet."
    with pytest.raises(SystemExit):
        book.main(["--profile", "fast"])
    assert "invalid choice: 'fast'" in capsys.readouterr().err


def test_an_interrupt_says_what_is_kept(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(book, "make_book", interrupted)
    assert book.main([]) == 130
    assert "the same command goes on" in capsys.readouterr().out


@pytest.mark.slow
def test_chapters_run_fail_resume_and_become_pages(root, monkeypatch, capsys):
    monkeypatch.setattr(book, "ROOT", root)
    list_chapters(root, "01_one", "02_two", "03_three", "04_four")
    formula = new_markdown_cell("Formula $\\hat x$ and\n\n$$a \\\\ b$$")
    write_chapter(root, "01_one", 'print(f"{profile}+{model}")', formula, title="One & all")
    write_chapter(root, "02_two", "x = 1", "# <b>boom</b>\nx / 0", "print('never')", title="Two")
    write_chapter(root, "03_three", "import os; os._exit(1)", title="Three")
    (root / "data" / "scoreboard.json").write_text('[{"name": "a.b", "value": 0.5, "n": 3}]')

    # 1. ONE chapter: the site shows all, and says which were not run.
    assert book.main(["--profile", "smoke", "--only", "1"]) == 2  # 04 is listed and missing
    assert "lists notebooks/04_four" in capsys.readouterr().err
    widget = "import ipywidgets\nipywidgets.IntSlider()"
    write_chapter(root, "04_four", widget, title="Four")
    assert book.main(["--profile", "smoke", "--only", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\[1/1\] 01_one: running … \(elapsed 0 s, remaining time not known", printed)
    assert re.search(r"\[1/1\] 01_one: done in \d+ s \(elapsed \d+ s, nothing remains\)", printed)
    site = root / "_build" / "html"
    assert f"Open {(site / 'index.html').as_uri()}" in printed and (site / "index.html").exists()
    one = (site / "notebooks" / "01_one.html").read_text()
    assert "smoke+nano" in one and "<mover" in one and "<mtd" in one
    two = (site / "notebooks" / "02_two.html").read_text()
    assert "has not been run in this build" in two and "ONLY=02" in two

    # 2. All of them: failures are named, kept, and do not stop the others.
    assert book.main(["--profile", "smoke"]) == 1
    printed = capsys.readouterr().out
    assert "[1/4] 01_one: up to date" in printed and "[2/4] 02_two: FAILED in" in printed
    assert "02_two.ipynb, cell In [4], which begins `# <b>boom</b>`:" in printed
    assert "ZeroDivisionError: division by zero" in printed
    assert re.search(r"03_three\.ipynb: .*[Kk]ernel.* died", printed)
    assert "In [3] (ipywidgets.IntSlider()) shows a widget" in printed
    assert "Failed: 02_two.ipynb, 03_three.ipynb and 04_four.ipynb" in printed
    kept = nbformat.read(root / "_build/executed/smoke-nano/02_two.ipynb", 4)
    assert any("ZeroDivisionError" in str(cell.get("outputs")) for cell in kept.cells)
    two = (site / "notebooks" / "02_two.html").read_text()
    assert "This chapter stopped with an error" in two and "<b>boom</b>" not in two
    status = (site / "book" / "status.html").read_text()
    assert all(word in status for word in ("One &amp; all", "done", "failed", "a.b", "2.13.0"))

    # 3. A mended chapter is run again, and it alone; the pages that it writes come along.
    writes = "from pathlib import Path\nplace = Path('pages/02_two')\nplace.mkdir(parents=True)"
    writes += "\n(place / 'page.html').write_text('a page')"
    write_chapter(root, "02_two", writes, title="Two")
    (root / "notebooks" / "03_three.ipynb").unlink()
    (root / "notebooks" / "04_four.ipynb").unlink()
    list_chapters(root, "01_one", "02_two")
    assert book.main(["--profile", "smoke"]) == 0
    printed = capsys.readouterr().out
    assert "[1/2] 01_one: up to date" in printed and "[2/2] 02_two: done" in printed
    assert not (root / "_build/source/smoke-nano/notebooks/03_three.ipynb").exists()
    shutil.rmtree(root / "notebooks" / "pages")

    # 4. What is up to date is not run again; a broken reference is an error that names it.
    assert book.main(["--profile", "smoke"]) == 0
    assert "running" not in capsys.readouterr().out
    assert (site / "notebooks" / "pages" / "02_two" / "page.html").read_text() == "a page"
    (root / "book" / "intro.md").write_text("# Small book\n\n[x](nowhere.md)\n\n$\\nosuch{x}$\n")
    assert book.main(["--profile", "smoke"]) == 2
    said = capsys.readouterr().err
    assert "jupyter-book refused the book" in said and "nowhere" in said and "nosuch" in said

    # 5. The pages ask no other host for anything.
    for path in site.rglob("*.html"):
        for tag in re.findall(
            r"<(?:script|link|img|iframe|audio|source)\b[^>]*>", path.read_text()
        ):
            assert not re.search(r"""(src|href)=["']?(https?:)?//""", tag), f"{path.name}: {tag}"
        assert "unpkg.com" not in path.read_text() and "cdn" not in path.read_text().lower()


@pytest.mark.slow
def test_two_builds_at_once_are_refused(root, monkeypatch, capsys):
    from musae_utils.runs import Run

    monkeypatch.setattr(book, "ROOT", root)
    folder = root / "_build" / "executed" / "smoke-nano"
    with Run(folder, {"profile": "smoke", "model": "nano"}):
        assert book.main(["--profile", "smoke"]) == 2
    assert "is in use by another run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_book_itself_runs_and_builds(smoke_book):
    assert smoke_book.status == 0, smoke_book.printed
    assert (smoke_book.site / "index.html").exists()
    names = [path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")]
    for name in names:
        assert (smoke_book.site / "notebooks" / f"{name}.html").exists()
