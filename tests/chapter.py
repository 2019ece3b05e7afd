"""Run chosen cells of a chapter, so that its tests hold what its readers see."""

import tempfile
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


class Chapter:
    """The code cells of one notebook.

    Attributes
    ----------
    cells : list
        All cells, prose included.
    """

    def __init__(self, name: str) -> None:
        self.cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
        self._folder = tempfile.TemporaryDirectory()

    def __call__(self, space, *snippets, **names):
        """Run the cells that hold the texts, in the chapter's order, in a copy of `space`."""
        chosen = [
            c for c in self.cells if c.cell_type == "code" and any(s in c.source for s in snippets)
        ]
        assert len(chosen) == len(snippets), "a cell that the tests rely on was changed"
        space = {**space, **names}
        for cell in chosen:
            # nnsight reads the body of a trace from its file.
            file = Path(self._folder.name) / f"{cell.id}.py"
            file.write_text(cell.source)
            exec(compile(cell.source, str(file), "exec"), space)
        return space

    def begin(self):
        """Its parameters in the smoke profile, and the cell that loads the model."""
        space = self({}, 'profile: str = "full"')
        return self({**space, "profile": "smoke"}, "models.load(model)")
